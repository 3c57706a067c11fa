"""NIQE: how far the statistics of a picture's patches are from those of undistorted photographs.

Mittal, Soundararajan and Bovik, "Making a Completely Blind Image Quality Analyzer", IEEE Signal Processing Letters,
2013. The published parameters are in ``framer/assets/niqe``, with their notice. What the paper leaves open follows the
authors' MATLAB release, so that values compare with those in the literature: see :data:`NIQE_ID`.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from framer.extras import require

NIQE_ID = (
    "niqe (luma 0.299 R + 0.587 G + 0.114 B rounded to 8 bit, patches 96x96 from the top left and the same at half "
    "size by MATLAB's antialiased bicubic, 7x7 Gaussian window sigma 7/6, rounding errors in flat areas set to 0, "
    "parameters mu_prisparam and cov_prisparam of the 2012 LIVE release)"
)
"""Distance from the multivariate Gaussian of 125 pristine photographs; lower is better."""

PATCH = 96
"""Side of a patch in pixels."""
MIN_PATCHES = 2
"""Patches that a covariance needs at least."""

_WINDOW_RADIUS, _WINDOW_SIGMA = 3, 7 / 6
_ROUNDING = 1e-9
_SHAPES = np.arange(200, 10_001) / 1000
"""Shapes of the generalised Gaussian among which the fit chooses: 0.2 to 10 in steps of 0.001."""
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
_FEATURES_PER_SCALE = 2 + 4 * len(_NEIGHBOURS)


class Pristine(NamedTuple):
    """The multivariate Gaussian of undistorted photographs' features: ``mean [36]``, ``covariance [36, 36]``."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


@functools.cache
def pristine() -> Pristine:
    """Reads the published parameters."""
    with resources.files("framer").joinpath("assets/niqe/pristine.npz").open("rb") as file, np.load(file) as arrays:
        return Pristine(arrays["mean"], arrays["covariance"])


def patches_of(height: int, width: int) -> int:
    """Number of whole patches in a picture."""
    return (height // PATCH) * (width // PATCH)


def niqe(image: NDArray[np.uint8]) -> float:
    """Measures a picture by itself, :data:`NIQE_ID`.

    Args:
        image: ``uint8 [H, W, 3]`` RGB. Rows and columns beyond the last whole patch are left out.

    Returns:
        The distance, 0 or more, lower for more natural pictures; NaN where fewer than two patches have structure, as in
        a picture of one colour.

    Raises:
        ValueError: Not ``uint8 [H, W, 3]``, or fewer than two whole patches.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"NIQE expects a uint8 [H, W, 3] picture, got {image.dtype} {list(image.shape)}")
    height, width = image.shape[:2]
    if patches_of(height, width) < MIN_PATCHES:
        raise ValueError(
            f"NIQE needs at least {MIN_PATCHES} patches of {PATCH} x {PATCH} px, got {height} x {width} (H x W)"
        )
    # In integers, for half a level is rounded the same everywhere.
    red, green, blue = np.moveaxis(image.astype(np.int64), 2, 0)
    luma = ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.float64)
    whole = luma[: height // PATCH * PATCH, : width // PATCH * PATCH]
    features = np.concatenate(
        [_patch_features(whole, PATCH), _patch_features(_halved(whole), PATCH // 2)],
        axis=1,
    )
    known = features[np.isfinite(features).all(axis=1)]
    if len(known) < MIN_PATCHES:
        return float("nan")
    reference = pristine()
    # As in the authors' release, a patch with an unknown feature still counts in the means of its other ones.
    mean = np.array([column[np.isfinite(column)].mean() for column in features.T])
    difference = reference.mean - mean
    inverse = np.linalg.pinv((reference.covariance + np.cov(known, rowvar=False)) / 2)
    return float(np.sqrt(max(difference @ inverse @ difference, 0.0)))


def _patch_features(luma: NDArray[np.float64], patch: int) -> NDArray[np.float64]:
    """The 18 features of each patch, ``[n, 18]``; NaN or infinite where a patch has no structure."""
    rows, columns = luma.shape[0] // patch, luma.shape[1] // patch
    patches = _contrast_normalised(luma).reshape(rows, patch, columns, patch).swapaxes(1, 2).reshape(-1, patch, patch)
    features = np.empty((len(patches), _FEATURES_PER_SCALE))
    with np.errstate(divide="ignore", invalid="ignore"):
        shape, left, right, _ = _asymmetric_gaussian(patches)
        features[:, 0], features[:, 1] = shape, (left + right) / 2
        for number, shift in enumerate(_NEIGHBOURS):
            # Wraps around within the patch, as the authors' release does.
            products = patches * np.roll(patches, shift, axis=(1, 2))
            shape, left, right, mean = _asymmetric_gaussian(products)
            features[:, 2 + 4 * number : 6 + 4 * number] = np.stack([shape, mean, left, right], axis=1)
    return features


def _contrast_normalised(luma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtracts the local mean and divides by the local standard deviation plus 1, borders repeated."""
    offsets = np.arange(-_WINDOW_RADIUS, _WINDOW_RADIUS + 1)
    taps = np.exp(-(offsets**2) / (2 * _WINDOW_SIGMA**2))
    taps /= taps.sum()
    correlate = require("scipy.ndimage", extra="train").correlate1d

    def local_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        averaged: NDArray[np.float64] = correlate(
            correlate(values, taps, axis=0, mode="nearest"), taps, axis=1, mode="nearest"
        )
        return averaged

    mean = local_mean(luma)
    deviation = np.sqrt(np.abs(local_mean(luma**2) - mean**2))
    normalised: NDArray[np.float64] = (luma - mean) / (deviation + 1)
    # In a flat area this is 0; what rounding makes of it has a sign, which the fit would take for structure.
    normalised[np.abs(normalised) < _ROUNDING] = 0
    return normalised


@functools.cache
def _ratios_of_shapes() -> NDArray[np.float64]:
    """(mean of absolute values)^2 / (mean of squares) of a generalised Gaussian, for each of the shapes; rising."""
    gammaln = require("scipy.special", extra="train").gammaln
    ratios: NDArray[np.float64] = np.exp(2 * gammaln(2 / _SHAPES) - gammaln(1 / _SHAPES) - gammaln(3 / _SHAPES))
    return ratios


class _Fit(NamedTuple):
    shape: NDArray[np.float64]
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    mean: NDArray[np.float64]


def _asymmetric_gaussian(samples: NDArray[np.float64]) -> _Fit:
    """Fits an asymmetric generalised Gaussian to each patch by moments: shape, scales and mean, each ``[n]``."""
    values = samples.reshape(len(samples), -1)
    below, above = values < 0, values > 0
    squares = values**2
    left_deviation = np.sqrt((squares * below).sum(axis=1) / below.sum(axis=1))
    right_deviation = np.sqrt((squares * above).sum(axis=1) / above.sum(axis=1))
    skew = left_deviation / right_deviation
    ratio = np.abs(values).mean(axis=1) ** 2 / squares.mean(axis=1)
    ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    ratios = _ratios_of_shapes()
    after = np.searchsorted(ratios, ratio).clip(1, len(ratios) - 1)
    nearest = np.where(ratio - ratios[after - 1] <= ratios[after] - ratio, after - 1, after)
    shape = np.where(np.isfinite(ratio), _SHAPES[nearest], np.nan)
    gamma = require("scipy.special", extra="train").gamma
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    left, right = left_deviation * scale, right_deviation * scale
    return _Fit(shape, left, right, (right - left) * gamma(2 / shape) / gamma(1 / shape))


def _halved(luma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Halves both sides, which are even, as MATLAB's ``imresize`` does: Keys' kernel stretched by 2, image mirrored."""
    distances = np.abs(np.arange(8) - 3.5) / 2
    taps = np.where(
        distances <= 1,
        1.5 * distances**3 - 2.5 * distances**2 + 1,
        -0.5 * distances**3 + 2.5 * distances**2 - 4 * distances + 2,
    )
    taps /= taps.sum()
    for axis in (0, 1):
        length = luma.shape[axis]
        padded = np.pad(luma, [(3, 3) if a == axis else (0, 0) for a in (0, 1)], mode="symmetric")
        luma = sum(
            (tap * np.take(padded, np.arange(first, first + length, 2), axis=axis) for first, tap in enumerate(taps)),
            start=np.zeros(()),
        )
    return luma
