"""PSNR and SSIM against their definitions, written out here without scikit-image."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from framer.evaluation.metrics import psnr, ssim, to_8bit

FloatArray = NDArray[np.float64]


def noisy_pair(seed: int, height: int = 24, width: int = 31) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    hr = np.cumsum(rng.random((height, width, 3)), axis=1)
    hr /= hr.max()
    return np.clip(hr + 0.1 * rng.standard_normal(hr.shape), 0.0, 1.0), hr


def gaussian_means(channel: FloatArray) -> FloatArray:
    """Gaussian-weighted mean of every 11 x 11 window that lies inside the channel."""
    offsets = np.arange(-5, 6)
    taps = np.exp(-(offsets**2) / (2 * 1.5**2))
    taps /= taps.sum()
    windows = np.lib.stride_tricks.sliding_window_view(channel, (11, 11))
    return np.einsum("ijyx,y,x->ij", windows, taps, taps)


def ssim_by_definition(sr: FloatArray, hr: FloatArray) -> float:
    values = []
    for channel in range(3):
        x, y = np.rint(255 * sr[..., channel]), np.rint(255 * hr[..., channel])
        mean_x, mean_y = gaussian_means(x), gaussian_means(y)
        variance_x, variance_y = gaussian_means(x * x) - mean_x**2, gaussian_means(y * y) - mean_y**2
        covariance = gaussian_means(x * y) - mean_x * mean_y
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        values.append(
            np.mean(
                (2 * mean_x * mean_y + c1)
                * (2 * covariance + c2)
                / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
            )
        )
    return float(np.mean(values))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_psnr_equals_its_definition(seed: int) -> None:
    sr, hr = noisy_pair(seed)
    error = np.mean((np.rint(255 * sr) - np.rint(255 * hr)) ** 2)
    assert psnr(sr, hr) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-10)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ssim_equals_its_definition(seed: int) -> None:
    sr, hr = noisy_pair(seed)
    assert ssim(sr, hr) == pytest.approx(ssim_by_definition(sr, hr), abs=1e-10)


def test_one_grey_level_everywhere_is_48_dB() -> None:  # noqa: N802 - the unit's name
    hr = np.full((16, 16, 3), 100 / 255)
    assert psnr(np.full_like(hr, 101 / 255), hr) == pytest.approx(20 * math.log10(255))


def test_differences_that_8_bits_cannot_hold_do_not_count() -> None:
    hr = np.full((16, 16, 3), 100 / 255)
    assert psnr(hr + 0.49 / 255, hr) == math.inf
    assert ssim(hr + 0.49 / 255, hr) == 1.0
    assert math.isfinite(psnr(hr + 0.51 / 255, hr))


def test_float32_and_float64_of_the_same_picture_measure_the_same() -> None:
    sr, hr = noisy_pair(3)
    sr, hr = to_8bit(sr) / 255, to_8bit(hr) / 255
    assert psnr(sr.astype(np.float32), hr.astype(np.float32)) == psnr(sr, hr)
    assert ssim(sr.astype(np.float32), hr.astype(np.float32)) == ssim(sr, hr)


def test_8_bit_pictures_survive_the_round_trip() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    np.testing.assert_array_equal(to_8bit((levels / 255).astype(np.float32)), levels)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda image: image[:-1], ValueError, r"same shape, got \[23, 31, 3\] and \[24, 31, 3\]"),
        (lambda image: image[..., 0], ValueError, r"sr: expected shape \[H, W, 3\], got \[24, 31\]"),
        (lambda image: image.transpose(2, 0, 1), ValueError, r"got \[3, 24, 31\]"),
        (lambda image: image[:0], ValueError, r"got \[0, 31, 3\]"),
        (lambda image: image * 2 - 1, ValueError, r"sr: values must lie in \[0, 1\], got -"),
        (lambda image: image + 1e-3, ValueError, r"to 1\.001"),
        (lambda image: np.where(image == image.max(), np.nan, image), ValueError, "got nan to nan"),
        (lambda image: to_8bit(image), TypeError, "sr: .*got an array of uint8"),
        (lambda image: image.tolist(), TypeError, "got list"),
    ],
)
def test_wrong_pictures_are_refused(metric, spoil, error, message) -> None:  # type: ignore[no-untyped-def]
    _, hr = noisy_pair(0)
    with pytest.raises(error, match=message):
        metric(spoil(hr), hr)


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    small = np.zeros((10, 40, 3))
    with pytest.raises(ValueError, match="at least 11 px a side, got 10 x 40"):
        ssim(small, small)
    assert ssim(np.zeros((11, 11, 3)), np.zeros((11, 11, 3))) == 1.0
