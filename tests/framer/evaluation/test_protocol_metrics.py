"""PSNR and SSIM of both protocols against direct calls of scikit-image; ids; the choice of metrics."""

import io
import math
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import convolve
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import framer
from framer.data.images import read_image
from framer.data.photographs import bundled_photographs
from framer.errors import UserError
from framer.evaluation import PSNR_ID, SSIM_ID
from framer.evaluation.folders import library_version
from framer.evaluation.metrics import luma_bt601, psnr_y_8bit, ssim_y_8bit
from framer.evaluation.protocols import PROTOCOLS, BuiltIn, choose_metrics, metric_id

SSIM_SETTINGS = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def jpeg(picture, quality):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


def noisy(picture, sigma):
    noise = np.random.default_rng(3).normal(0, sigma, picture.shape)
    return np.rint((picture + noise).clip(0, 255)).astype(np.uint8)


def shrunk(picture, factor):
    small = Image.fromarray(picture).resize((picture.shape[1] // factor, picture.shape[0] // factor), Image.BICUBIC)
    return np.array(small.resize((picture.shape[1], picture.shape[0]), Image.BICUBIC))


def motion(picture):
    return convolve(picture, np.ones((1, 7, 1)) / 7).astype(np.uint8)


DEGRADATIONS = [
    lambda p: jpeg(p, 10),
    lambda p: jpeg(p, 80),
    lambda p: noisy(p, 3),
    lambda p: noisy(p, 40),
    lambda p: shrunk(p, 2),
    lambda p: shrunk(p, 8),
    lambda p: np.array(Image.fromarray(p).filter(ImageFilter.GaussianBlur(2))),
    motion,
    lambda p: 255 - p,
    lambda p: np.rint(p * 0.9 + 12).astype(np.uint8),
]


@pytest.fixture(scope="module")
def pairs():
    paths = [path for split in ("train", "validation", "heldout") for path in bundled_photographs(split)]
    originals = [read_image(path)[20:213, 30:260] for path in paths[: len(DEGRADATIONS)]]
    return [(degrade(hr), hr) for degrade, hr in zip(DEGRADATIONS, originals, strict=True)]


def measure(protocol, name, sr, hr):
    (metric,) = choose_metrics(protocol, [name])
    assert isinstance(metric, BuiltIn)
    return metric.measure(sr, hr)


@pytest.mark.parametrize("number", range(len(DEGRADATIONS)))
def test_framer_protocol_equals_scikit_image_on_rgb(pairs, number):
    sr, hr = pairs[number]
    assert measure("framer", "psnr", sr, hr) == pytest.approx(peak_signal_noise_ratio(hr, sr), abs=1e-9)
    expected = structural_similarity(hr, sr, channel_axis=2, **SSIM_SETTINGS)
    assert measure("framer", "ssim", sr, hr) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("number", range(len(DEGRADATIONS)))
def test_osediff_protocol_equals_scikit_image_on_its_own_luma(pairs, number):
    sr, hr = pairs[number]
    sr_luma, hr_luma = rgb2ycbcr(sr)[..., 0], rgb2ycbcr(hr)[..., 0]
    expected = peak_signal_noise_ratio(hr_luma, sr_luma, data_range=255)
    assert measure("osediff", "psnr", sr, hr) == pytest.approx(expected, abs=1e-4)
    expected = structural_similarity(hr_luma, sr_luma, **SSIM_SETTINGS)
    assert measure("osediff", "ssim", sr, hr) == pytest.approx(expected, abs=1e-4)


def test_luma_runs_from_16_to_235_and_weighs_green_most():
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert luma_bt601(colours)[0] == pytest.approx([16, 235, 81.481, 144.553, 40.966])


def test_protocols_differ_where_only_colour_differs():
    hr = np.full((32, 32, 3), 128, np.uint8)
    sr = hr.copy()
    sr[..., 2] += 20
    assert measure("osediff", "psnr", sr, hr) > measure("framer", "psnr", sr, hr) + 10


def test_the_same_picture_has_infinite_psnr_and_ssim_one_in_both():
    picture = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    for protocol in PROTOCOLS:
        assert measure(protocol, "psnr", picture, picture) == math.inf
        assert measure(protocol, "ssim", picture, picture) == pytest.approx(1.0)


def test_ssim_of_luma_refuses_pictures_below_the_window():
    with pytest.raises(ValueError, match="at least 11 px a side, got 10 x 40"):
        ssim_y_8bit(np.zeros((10, 40, 3), np.uint8), np.ones((10, 40, 3), np.uint8))
    assert math.isfinite(psnr_y_8bit(np.zeros((10, 40, 3), np.uint8), np.ones((10, 40, 3), np.uint8)))


def test_framer_protocol_has_the_ids_of_the_training_report():
    ids = {metric.name: metric_id(metric, border=0) for metric in choose_metrics("framer")}
    assert ids["psnr"] == PSNR_ID
    assert ids["ssim"] == SSIM_ID


def test_another_border_or_variant_is_another_id():
    for protocol in PROTOCOLS:
        for metric in choose_metrics(protocol):
            assert metric_id(metric, border=4) != metric_id(metric, border=0)
    variants = {metric_id(metric, border=0) for protocol in PROTOCOLS for metric in choose_metrics(protocol)}
    # lpips, niqe and musiq are the same number in both; psnr, ssim and maniqa are not.
    assert len(variants) == sum(map(len, PROTOCOLS.values())) - 3


def test_learned_ids_name_their_weights():
    for protocol in PROTOCOLS:
        for metric in choose_metrics(protocol):
            if not isinstance(metric, BuiltIn):
                assert all(weights.file in metric.id for weights in metric.weights)
                assert f"'{metric.name}'" in metric.id


def test_metrics_are_chosen_by_name_in_the_protocols_order():
    assert [metric.name for metric in choose_metrics("osediff", ["niqe", "psnr", "niqe"])] == ["psnr", "niqe"]


def test_an_unknown_metric_is_named_with_those_there_are():
    with pytest.raises(UserError, match="framer has no metric fid, psnry; it has psnr, ssim, lpips, niqe"):
        choose_metrics("framer", ["fid", "psnr", "psnry"])


def test_what_computed_a_metric_is_named_with_its_own_version(monkeypatch):
    psnr, niqe = choose_metrics("framer", ["psnr", "niqe"])
    assert library_version(psnr) == f"scikit-image {version('scikit-image')}"
    assert library_version(replace(psnr, library="not-installed")) == "not-installed, version unknown"
    monkeypatch.setattr(framer, "__version__", "9.9.9")
    assert library_version(niqe) == "framer-diffusion 9.9.9"
