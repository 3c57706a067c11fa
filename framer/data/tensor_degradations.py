"""The degradation on batches of tensors, on any device, by the draws that OpenCV's path takes too.

Every image of a batch is computed by calls of its own, since sizes and kernels differ from one to the next; so its
result does not depend on the others, bit for bit. Filters are products of Fourier transforms: on a CPU ten times as
fast as torch's convolution at the widest kernels, and on a GPU not touched by reduced precision. JPEG is OpenCV's and
noise is NumPy's, both on the CPU, so that a device changes no more than last digits; kornia has JPEG as a
differentiable approximation and draws its noise on the device, and was left out for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from framer.data.blur_kernels import KernelDraw, gaussian_kernel
from framer.data.degradation_draws import DegradationDraw, ResizeDraw, Step
from framer.data.degradations import (
    LUMA,
    SHARPEN_SIGMA,
    SHARPEN_THRESHOLD,
    SHARPEN_WEIGHT,
    SHARPEN_WIDTH,
    jpeg,
)
from framer.data.noise import NoiseDraw, noise_field, noise_of
from framer.extras import require

__all__ = ["DegradedBatch", "degrade_batch"]


class DegradedBatch(NamedTuple):
    """What `degrade_batch` returns.

    Attributes:
        lr: ``float32 [B, 3, H / scale, W / scale]`` in ``[0, 1]``, every value a multiple of 1/255.
        hr: ``float32 [B, 3, H, W]`` in ``[0, 1]``, sharpened where the draws say so; the training targets.
    """

    lr: Tensor
    hr: Tensor


def degrade_batch(hr: Tensor, draws: Sequence[DegradationDraw], *, threads: int = 1) -> DegradedBatch:
    """Degrades a batch of high-resolution images, each by draws of its own.

    The results are those of `framer.data.degradations.apply_degradation` with the same draws, but for what rounding to
    8 bits and JPEG make of the last digits of floating point. Draws that `degrade` returns are taken too, but only
    `draw_degradation`'s have Poisson noise that such digits leave alone. Where OpenCV 5.0's `area` takes a wrong row or
    column, at a few enlargements such as 512 to 644, 694 and 748 or 96 to 106, 130 and 136, this takes the right one.

    Args:
        hr: ``float32 [B, 3, H, W]`` RGB in ``[0, 1]`` on any device.
        draws: One for each image, all for its height and width and of one scale.
        threads: Images that are worked on at the same time; changes no result.

    Returns:
        LR images and targets, on the device of `hr` and without gradients.

    Raises:
        ValueError: `hr` has another shape or dtype, the draws are not as many, are for another size, or differ in
            their scale; or `threads` is not positive.
    """
    if hr.dtype != torch.float32 or hr.ndim != 4 or hr.shape[1] != 3 or not hr.numel():
        raise ValueError(f"expected float32 [B, 3, H, W] images, got {hr.dtype} {list(hr.shape)}")
    if len(draws) != len(hr):
        raise ValueError(f"expected draws for each of {len(hr)} images, got {len(draws)}")
    for draw in draws:
        if draw.shape != tuple(hr.shape[2:]):
            raise ValueError(f"the draws are for images of {list(draw.shape)} pixels, got {list(hr.shape[2:])}")
    if len({draw.scale for draw in draws}) > 1:
        raise ValueError(f"expected draws of one scale, got {sorted({draw.scale for draw in draws})}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    images = hr.detach()
    if threads == 1:
        pairs = [_degraded(image, draw) for image, draw in zip(images, draws, strict=True)]
    else:
        with ThreadPoolExecutor(threads) as pool:
            pairs = list(pool.map(_degraded, images, draws))
    return DegradedBatch(lr=torch.stack([lr for lr, _ in pairs]), hr=torch.stack([target for _, target in pairs]))


def _degraded(hr: Tensor, draw: DegradationDraw) -> tuple[Tensor, Tensor]:
    target = image = _sharpened(hr) if draw.sharpen_target else hr
    for step in draw.steps():
        image = _applied(step, image)
    return image.clamp(0.0, 1.0).mul(255.0).round().div(255.0), target


def _applied(step: Step, image: Tensor) -> Tensor:
    if isinstance(step, KernelDraw):
        return _filtered(image, step.weights())
    if isinstance(step, ResizeDraw):
        return _resized(image, step)
    if isinstance(step, NoiseDraw):
        return _noisy(image, step)
    return _from_pixels(jpeg(_to_pixels(image), step.quality), image.device)


def _sharpened(image: Tensor) -> Tensor:
    kernel = gaussian_kernel(SHARPEN_WIDTH, SHARPEN_SIGMA, SHARPEN_SIGMA)
    detail = image - _filtered(image, kernel)
    mask = _filtered((detail.abs() > SHARPEN_THRESHOLD).float(), kernel)
    sharpened = (image + SHARPEN_WEIGHT * detail).clamp(0.0, 1.0)
    return image + mask * (sharpened - image)


def _filtered(image: Tensor, kernel: npt.NDArray[np.float32]) -> Tensor:
    """Filters with mirrored borders; the kernel is equal to itself turned by 180 degrees."""
    fast_length = require("scipy.fft", extra="train").next_fast_len
    height, width = image.shape[1:]
    radius = len(kernel) // 2
    padded = image.index_select(1, _mirrored(height, radius).to(image.device))
    padded = padded.index_select(2, _mirrored(width, radius).to(image.device))
    size = (fast_length(height + 2 * radius, real=True), fast_length(width + 2 * radius, real=True))
    spectrum = torch.fft.rfft2(padded, s=size) * torch.fft.rfft2(torch.from_numpy(kernel).to(image.device), s=size)
    wrapped: Tensor = torch.fft.irfft2(spectrum, s=size)
    # What wraps around falls into the padding, which is cut off.
    return wrapped[:, 2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width]


def _mirrored(length: int, radius: int) -> Tensor:
    """Indices of an axis and of `radius` places beyond its ends, mirrored at the outermost pixels."""
    period = max(1, 2 * (length - 1))
    places = torch.arange(-radius, length + radius) % period
    return torch.minimum(places, period - places) if length > 1 else torch.zeros_like(places)


def _resized(image: Tensor, draw: ResizeDraw) -> Tensor:
    if draw.size == tuple(image.shape[1:]):
        return image
    if draw.mode == "area":
        return _averaged(_averaged(image, 1, draw.size[0]), 2, draw.size[1])
    # Without antialiasing, torch's interpolation is OpenCV's: pixel centres, clamped borders, and a = -0.75 of bicubic.
    mode = "bilinear" if draw.mode == "linear" else "bicubic"
    resized: Tensor = F.interpolate(image[None], draw.size, mode=mode, align_corners=False, antialias=False)
    return resized[0]


def _averaged(image: Tensor, axis: int, length: int) -> Tensor:
    """Resizes one axis; each pixel of the result is the mean over its extent in the image."""
    taps, weights = _overlaps(image.shape[axis], length)
    taps, weights = taps.to(image.device), weights.to(image.device)
    shape = [1, 1, 1]
    shape[axis] = length
    result = image.index_select(axis, taps[0]) * weights[0].view(shape)
    for tap, weight in zip(taps[1:], weights[1:], strict=True):
        result = torch.addcmul(result, image.index_select(axis, tap), weight.view(shape))
    return result


@lru_cache(maxsize=256)
def _overlaps(before: int, after: int) -> tuple[Tensor, Tensor]:
    """The pixels that each pixel of the resized axis covers, ``int64 [K, after]``, and their shares, ``float32``."""
    edges = np.arange(after + 1) * (before / after)
    start, end = edges[:-1], np.minimum(edges[1:], before)
    taps = np.floor(start).astype(np.int64) + np.arange(math.ceil(before / after) + 1)[:, None]
    shares = np.clip(np.minimum(end, taps + 1) - np.maximum(start, taps), 0.0, None)
    shares /= shares.sum(axis=0)
    return torch.from_numpy(np.minimum(taps, before - 1)), torch.from_numpy(shares.astype(np.float32))


def _noisy(image: Tensor, draw: NoiseDraw) -> Tensor:
    def signal() -> npt.NDArray[np.uint8]:
        grey = (image * image.new_tensor(LUMA).view(3, 1, 1)).sum(dim=0, keepdim=True)
        return _to_pixels(grey if draw.gray else image)

    field = noise_field(draw, (image.shape[1], image.shape[2]), signal, noise_of(draw))
    return (image + torch.from_numpy(field).permute(2, 0, 1).to(image.device)).clamp(0.0, 1.0)


def _to_pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    """``float32 [C, H, W]`` to ``uint8 [H, W, C]`` in the memory of the CPU."""
    levels = image.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    pixels: npt.NDArray[np.uint8] = np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())
    return pixels


def _from_pixels(pixels: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    return torch.from_numpy(pixels).to(device).permute(2, 0, 1).float().div(255.0).contiguous()
