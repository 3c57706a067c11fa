"""Giving a restored image the colours of the low-resolution one."""

from __future__ import annotations

import math
from typing import Final, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

ColourFix = Literal["adain", "wavelet", "none"]
COLOUR_FIXES: Final[tuple[ColourFix, ...]] = get_args(ColourFix)

DILATIONS: Final = (1, 2, 4, 8, 16)
"""Of the levels of the wavelet decomposition."""

REACH: Final = sum(DILATIONS)
"""How far a pixel of the low band depends on the image."""

STRIP: Final = 256
"""Rows that are filtered at once."""

_KERNEL = torch.tensor([0.25, 0.5, 0.25])
"""Outer product with itself: the 3x3 kernel of the a-trous algorithm."""


def fix_colours(restored: Tensor, upsampled: Tensor, method: ColourFix) -> Tensor:
    """The restored image with the low-resolution one's colours; memory beside the images is that of a few rows.

    Args:
        restored: ``[B, 3, H, W]`` float32; changed in place.
        upsampled: The low-resolution image at the same size.
        method: ``adain``, :func:`match_statistics`; ``wavelet``, :func:`match_low_band`; ``none``.

    Returns:
        ``restored``, not clamped.
    """
    if method == "adain":
        return match_statistics(restored, upsampled)
    return match_low_band(restored, upsampled) if method == "wavelet" else restored


def match_statistics(restored: Tensor, upsampled: Tensor) -> Tensor:
    """Shifts and scales each channel to the mean and deviation of the low-resolution image, in place.

    Adaptive instance normalisation (arXiv 1703.06868) of the pixels. Done twice it changes nothing more.

    Args:
        restored: ``[B, 3, H, W]`` float32.
        upsampled: The same shape.
    """
    for image, known in zip(restored, upsampled, strict=True):
        for channel, wanted in zip(image, known, strict=True):
            mean, deviation = _statistics(channel)
            wanted_mean, wanted_deviation = _statistics(wanted)
            channel.sub_(mean).mul_(wanted_deviation / deviation if deviation > 0 else 1.0).add_(wanted_mean)
    return restored


def _statistics(plane: Tensor) -> tuple[float, float]:
    """Mean and standard deviation, in float64 by strips: a sum of millions in float32 would lose digits."""
    strips = torch.split(plane, STRIP)
    mean = math.fsum(float(strip.double().sum()) for strip in strips) / plane.numel()
    variance = math.fsum(float((strip.double() - mean).square().sum()) for strip in strips) / plane.numel()
    return mean, math.sqrt(variance)


def match_low_band(restored: Tensor, upsampled: Tensor) -> Tensor:
    """Replaces the image's low band by that of the low-resolution image, in place.

    Args:
        restored: ``[B, 3, H, W]`` float32.
        upsampled: The same shape.
    """
    height = restored.shape[-2]
    # What a strip depends on above it has been changed by then; the difference to the low-resolution image is kept.
    above = restored[..., :0, :].clone()
    for top in range(0, height, STRIP):
        bottom = min(top + STRIP, height)
        reach = min(bottom + REACH, height)
        difference = torch.cat([above, upsampled[..., top:reach, :] - restored[..., top:reach, :]], dim=-2)
        # Bands add up to the image, and the low band is linear: high(restored) + low(upsampled) is this.
        corrections = low_band(difference)[..., above.shape[-2] : above.shape[-2] + bottom - top, :]
        above = difference[..., : above.shape[-2] + bottom - top, :][..., -REACH:, :].clone()
        restored[..., top:bottom, :] += corrections
    return restored


def low_band(image: Tensor) -> Tensor:
    """What is left of an image after five levels of the a-trous wavelet transform: its large-scale colours.

    Args:
        image: ``[B, C, H, W]`` float32; continued beyond its border by its outermost pixels.

    Returns:
        The same shape.
    """
    kernel = _KERNEL.to(image.device)
    channels = image.shape[1]
    for dilation in DILATIONS:
        for axis in (-2, -1):
            shape, padding = (3, 1), (0, 0, dilation, dilation)
            if axis == -1:
                shape, padding = (1, 3), (dilation, dilation, 0, 0)
            weight = kernel.view(1, 1, *shape).expand(channels, 1, *shape)
            padded = F.pad(image, padding, mode="replicate")
            image = F.conv2d(padded, weight, dilation=dilation, groups=channels)
    return image
