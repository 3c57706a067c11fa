"""PSNR and SSIM of a picture against its original, each under an id that says exactly what is computed."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from framer.extras import require

Image: TypeAlias = NDArray[np.floating]
"""RGB picture ``[H, W, 3]``, floating point, every value in [0, 1]."""

PSNR_ID = "psnr (RGB, 8-bit, whole crop)"
"""Peak signal-to-noise ratio in dB: one mean squared error over all pixels and channels, peak 255."""

SSIM_ID = (
    "ssim (mean over R, G, B, 8-bit, Gaussian window sigma 1.5 cut to 11x11, K1 0.01, K2 0.03, "
    "population covariance, mean over whole windows: 5 px border left out)"
)
"""Structural similarity of Wang et al. (2004), as ``skimage.metrics.structural_similarity`` computes it."""

PSNR_Y_ID = "psnr (Y of BT.601, 16 to 235, not rounded, of 8-bit RGB, peak 255, whole crop)"
"""Peak signal-to-noise ratio in dB of the luma that MATLAB's ``rgb2ycbcr`` defines."""

SSIM_Y_ID = (
    "ssim (Y of BT.601, 16 to 235, not rounded, of 8-bit RGB, range 255, Gaussian window sigma 1.5 cut to 11x11, "
    "K1 0.01, K2 0.03, population covariance, mean over whole windows: 5 px border left out; pyiqa's rounds Y to 8 bit "
    "and counts negative structure as 0)"
)
"""Structural similarity of that luma, as ``skimage.metrics.structural_similarity`` computes it."""

SSIM_WINDOW = 11
"""Side of the Gaussian window in pixels: the smallest picture that SSIM is defined for."""


def to_8bit(image: Image, *, name: str = "image") -> NDArray[np.uint8]:
    """Rounds a picture to 8 bit, as it is when saved as PNG.

    Args:
        image: RGB picture ``[H, W, 3]`` in [0, 1].
        name: What the error messages call it.

    Returns:
        ``round(255 * image)``, ``[H, W, 3]`` uint8.

    Raises:
        TypeError: Not a floating-point array.
        ValueError: Not of shape ``[H, W, 3]``, empty, or a value is NaN or outside [0, 1].
    """
    _check_floating(image, name)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"{name}: expected shape [H, W, 3], got {list(image.shape)}")
    lowest, highest = float(image.min()), float(image.max())
    if not (lowest >= 0.0 and highest <= 1.0):
        raise ValueError(f"{name}: values must lie in [0, 1], got {lowest:g} to {highest:g}; clamp the picture first")
    return np.rint(image.astype(np.float64) * 255.0).astype(np.uint8)


def _check_floating(image: object, name: str) -> None:
    if isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating):
        return
    got = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
    raise TypeError(f"{name}: expected a floating-point array [H, W, 3] in [0, 1], got {got}")


def _pair(sr: Image, hr: Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    sr_8bit, hr_8bit = to_8bit(sr, name="sr"), to_8bit(hr, name="hr")
    if sr_8bit.shape != hr_8bit.shape:
        raise ValueError(f"sr and hr must have the same shape, got {list(sr.shape)} and {list(hr.shape)}")
    return sr_8bit, hr_8bit


def psnr(sr: Image, hr: Image) -> float:
    """Peak signal-to-noise ratio, :data:`PSNR_ID`.

    ``10 log10(255^2 / MSE)`` after both pictures are rounded to 8 bit.

    Args:
        sr: The picture to judge, RGB ``[H, W, 3]`` in [0, 1].
        hr: The original, same shape and range.

    Returns:
        PSNR in dB; ``inf`` when the two are the same after rounding.

    Raises:
        TypeError: An input is not a floating-point array.
        ValueError: Shapes differ or are not ``[H, W, 3]``, or a value is NaN or outside [0, 1].
    """
    return psnr_8bit(*_pair(sr, hr))


def ssim(sr: Image, hr: Image) -> float:
    """Structural similarity, :data:`SSIM_ID`.

    Args:
        sr: The picture to judge, RGB ``[H, W, 3]`` in [0, 1].
        hr: The original, same shape and range.

    Returns:
        Mean SSIM in [-1, 1]; 1 when the two are the same after rounding.

    Raises:
        TypeError: An input is not a floating-point array.
        ValueError: Shapes differ or are not ``[H, W, 3]``, a side is shorter than the 11 px window, or a
            value is NaN or outside [0, 1].
    """
    return ssim_8bit(*_pair(sr, hr))


def psnr_8bit(sr: NDArray[np.uint8], hr: NDArray[np.uint8]) -> float:
    """:func:`psnr` of pictures ``uint8 [H, W, 3]`` of the same shape, as files hold them."""
    return _psnr(sr, hr)


def ssim_8bit(sr: NDArray[np.uint8], hr: NDArray[np.uint8]) -> float:
    """:func:`ssim` of pictures ``uint8 [H, W, 3]`` of the same shape, as files hold them."""
    return _ssim(sr, hr)


def psnr_y_8bit(sr: NDArray[np.uint8], hr: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of the luma, :data:`PSNR_Y_ID`, of pictures ``uint8 [H, W, 3]`` of the same shape."""
    return _psnr(luma_bt601(sr), luma_bt601(hr))


def ssim_y_8bit(sr: NDArray[np.uint8], hr: NDArray[np.uint8]) -> float:
    """Structural similarity of the luma, :data:`SSIM_Y_ID`, of pictures ``uint8 [H, W, 3]`` of the same shape."""
    return _ssim(luma_bt601(sr), luma_bt601(hr))


def luma_bt601(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Y of ITU-R BT.601 in studio range, as MATLAB's ``rgb2ycbcr`` gives it, but not rounded.

    Args:
        image: ``uint8 [H, W, 3]`` RGB.

    Returns:
        ``[H, W]`` float64: 16 for black to 235 for white.
    """
    # In integers, thousandths of the coefficients, so that the same picture gives the same luma on every machine.
    weighted = image.astype(np.int64) @ np.array([65_481, 128_553, 24_966])
    luma: NDArray[np.float64] = 16 + weighted / 255_000
    return luma


def _psnr(sr: NDArray[Any], hr: NDArray[Any]) -> float:
    if np.array_equal(sr, hr):
        return math.inf
    metrics = require("skimage.metrics", extra="train")
    return float(metrics.peak_signal_noise_ratio(hr, sr, data_range=255))


def _ssim(sr: NDArray[Any], hr: NDArray[Any]) -> float:
    height, width = hr.shape[:2]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {SSIM_WINDOW} px a side, got {height} x {width}")
    metrics = require("skimage.metrics", extra="train")
    return float(
        metrics.structural_similarity(
            hr,
            sr,
            data_range=255,
            channel_axis=2 if hr.ndim == 3 else None,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            K1=0.01,
            K2=0.03,
        )
    )
