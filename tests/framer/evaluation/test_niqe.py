"""NIQE against two published implementations, and its parts against what they are by definition."""

import numpy as np
import pytest
from scipy.special import gamma
from scipy.stats import gennorm

from framer.data.images import read_image
from framer.data.photographs import bundled_photographs
from framer.evaluation.niqe import _asymmetric_gaussian, _halved, niqe, patches_of, pristine

# Of the top left 800 x 800 pixels, as BasicSR 1.4.2 (calculate_niqe, crop_border=0, convert_to="gray") and pyiqa 0.1.16
# ('niqe' with default settings, with the same parameters) gave them. They halve pictures and fit in single precision;
# patches without structure, as in the sky of rocket, hold rounding errors there.
PUBLISHED = {
    "coffee": (4.059334, 4.061668),
    "china": (4.212907, 4.211157),
    "hubble_deep_field": (7.785334, 7.785335),
    "brick": (9.477540, 9.482674),
    "camera": (3.096377, 3.095938),
    "rocket": (7.036729, 7.035579),
    "astronaut": (3.061003, 3.063975),
    "chelsea": (2.572088, 2.572079),
    "flower": (4.819722, 4.819590),
    "grace_hopper": (3.643361, 3.642835),
}


@pytest.fixture(scope="module")
def photographs():
    paths = [path for split in ("train", "validation", "heldout") for path in bundled_photographs(split)]
    return {path.stem: read_image(path)[:800, :800] for path in paths}


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_published_implementations(photographs, name):
    assert niqe(photographs[name]) == pytest.approx(PUBLISHED[name][0], abs=0.004)
    assert niqe(photographs[name]) == pytest.approx(PUBLISHED[name][1], abs=0.004)


def test_where_half_a_picture_is_flat_the_published_implementations_differ_as_much_from_each_other(photographs):
    # BasicSR 6.2114, pyiqa 6.1698; BasicSR given the luma in double precision 6.1743.
    assert niqe(photographs["retina"]) == pytest.approx(6.2, abs=0.15)


def test_noise_blur_and_blocks_make_it_worse(photographs):
    from scipy.ndimage import gaussian_filter

    clean = photographs["astronaut"]
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    noisy = np.rint((clean + noise).clip(0, 255)).astype(np.uint8)
    blurred = np.rint(gaussian_filter(clean.astype(float), (2, 2, 0))).astype(np.uint8)
    assert niqe(noisy) > niqe(clean) + 1
    assert niqe(blurred) > niqe(clean) + 1
    assert niqe(clean.repeat(4, axis=0).repeat(4, axis=1)[:512, :512]) > niqe(clean) + 1


def test_pixels_beyond_the_last_whole_patch_do_not_count(photographs):
    picture = photographs["chelsea"][:192, :288]
    padded = np.pad(picture, ((0, 95), (0, 95), (0, 0)), constant_values=200)
    assert niqe(padded) == niqe(picture)


def test_a_picture_of_one_colour_is_not_defined():
    assert np.isnan(niqe(np.full((192, 192, 3), 77, np.uint8)))


def test_flat_patches_are_not_taken_for_structure(photographs):
    picture = np.concatenate([photographs["chelsea"][:192, :192], np.full((192, 192, 3), 255, np.uint8)], axis=1)
    assert np.isfinite(niqe(picture))


@pytest.mark.parametrize(("height", "width", "patches"), [(96, 191, 1), (96, 192, 2), (95, 500, 0), (200, 300, 6)])
def test_counts_whole_patches(height, width, patches):
    assert patches_of(height, width) == patches
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if patches < 2:
        with pytest.raises(ValueError, match=f"at least 2 patches of 96 x 96 px, got {height} x {width}"):
            niqe(picture)
    else:
        assert niqe(picture) > 0


@pytest.mark.parametrize(
    "picture", [np.zeros((192, 192, 3)), np.zeros((192, 192), np.uint8), np.zeros((192, 192, 4), np.uint8)]
)
def test_refuses_other_arrays(picture):
    with pytest.raises(ValueError, match="uint8"):
        niqe(picture)


def test_parameters_are_those_of_the_release():
    mean, covariance = pristine()
    assert mean.shape == (36,)
    assert covariance.shape == (36, 36)
    assert mean[:3] == pytest.approx([2.60131368, 0.90570272, 0.81204778], abs=1e-8)
    assert np.array_equal(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > 0


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0, 3.5])
def test_the_fit_finds_the_shape_that_samples_were_drawn_with(shape):
    samples = gennorm.rvs(shape, scale=2.0, size=(3, 300, 300), random_state=np.random.default_rng(1))
    fit = _asymmetric_gaussian(samples)
    assert fit.shape == pytest.approx(np.full(3, shape), rel=0.02)
    assert fit.left == pytest.approx(np.full(3, 2.0), rel=0.03)
    assert fit.right == pytest.approx(np.full(3, 2.0), rel=0.03)
    assert fit.mean == pytest.approx(np.zeros(3), abs=0.15)


def test_the_fit_finds_two_different_sides():
    generator = np.random.default_rng(2)
    left, right, shape = 1.0, 3.0, 1.5
    sizes = np.abs(gennorm.rvs(shape, size=400_000, random_state=generator))
    # Each side's share is its scale's.
    samples = np.where(generator.random(400_000) < right / (left + right), right * sizes, -left * sizes)
    fit = _asymmetric_gaussian(samples[None])
    assert fit.shape[0] == pytest.approx(shape, rel=0.03)
    assert (fit.left[0], fit.right[0]) == pytest.approx((left, right), rel=0.03)
    assert fit.mean[0] == pytest.approx((right - left) * gamma(2 / shape) / gamma(1 / shape), rel=0.03)


def test_halving_keeps_constants_and_slopes_and_filters_before_it_samples():
    rows, columns = np.mgrid[0:96, 0:96].astype(float)
    assert _halved(np.full((96, 192), 7.0)) == pytest.approx(np.full((48, 96), 7.0))
    halved = _halved(3 * columns + rows)
    inner = slice(2, -2)
    expected = 3 * (2 * columns[:48, :48] + 0.5) + 2 * rows[:48, :48] + 0.5
    assert halved[inner, inner] == pytest.approx(expected[inner, inner])
    checkerboard = 255.0 * ((rows + columns) % 2)
    assert _halved(checkerboard)[inner, inner] == pytest.approx(np.full((44, 44), 127.5))
