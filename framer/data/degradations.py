"""The second-order degradation that makes a low-resolution image out of a photograph.

Two rounds of blur, resize, noise and JPEG; the second round's JPEG swaps places at random with the resize to
the final size and the sinc filter after it. Source: Wang et al., "Real-ESRGAN: Training Real-World Blind
Super-Resolution with Pure Synthetic Data", 2021, section 3. All pictures here are ``float32 [H, W, 3]`` RGB
in ``[0, 1]``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from framer.data.blur_kernels import draw_kernel, sinc_kernel
from framer.data.presets import PRESETS, DegradationPreset, StagePreset, degradation_preset
from framer.extras import require

__all__ = ["PRESETS", "DegradationPreset", "Degraded", "degradation_preset", "degrade", "sharpen"]

cv2 = require("cv2", extra="train")

Picture = npt.NDArray[np.float32]

_SHARPEN_WIDTH = 51
_SHARPEN_SIGMA = 8.0
_SHARPEN_WEIGHT = 0.5
_SHARPEN_THRESHOLD = 10.0 / 255.0
_PHOTONS = 256.0
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class Degraded(NamedTuple):
    """What `degrade` returns.

    Attributes:
        lr: ``float32 [H / scale, W / scale, 3]`` in ``[0, 1]``, every value a multiple of 1/255.
        hr: ``float32 [H, W, 3]`` in ``[0, 1]``, sharpened where the preset says so; the training target.
    """

    lr: Picture
    hr: Picture


def degrade(hr: Picture, preset: DegradationPreset, rng: np.random.Generator, *, scale: int = 4) -> Degraded:
    """Degrades a high-resolution image.

    Every draw comes from `rng`: equal images, presets and generator states give equal results.

    Args:
        hr: ``float32 [H, W, 3]`` RGB in ``[0, 1]``; height and width are multiples of `scale`.
        preset: Ranges and probabilities, from `PRESETS` or your own.
        rng: Source of every draw.
        scale: Factor between the resolutions.

    Returns:
        The low-resolution image and its target.

    Raises:
        ValueError: `hr` has another shape or dtype, or is no multiple of `scale`.
    """
    if hr.dtype != np.float32 or hr.ndim != 3 or hr.shape[2] != 3:
        raise ValueError(f"expected a float32 [H, W, 3] image, got {hr.dtype} {list(hr.shape)}")
    height, width = hr.shape[:2]
    if scale < 1 or height % scale or width % scale or not hr.size:
        raise ValueError(f"expected height and width to be multiples of scale={scale}, got {height}x{width}")
    if preset.sharpen_target:
        hr = sharpen(hr)

    first, second = preset.first, preset.second
    image = _maybe_blur(hr, first, rng)
    image = _resize_by_draw(image, (height, width), first, rng)
    image = _add_noise(image, first, rng)
    image = _jpeg(image, first, rng)

    target = (height // scale, width // scale)
    image = _maybe_blur(image, second, rng)
    image = _resize_by_draw(image, target, second, rng)
    image = _add_noise(image, second, rng)
    if rng.random() < 0.5:
        image = _final_resize(image, target, preset, rng)
        image = _jpeg(image, second, rng)
    else:
        image = _jpeg(image, second, rng)
        image = _final_resize(image, target, preset, rng)
    return Degraded(lr=_from_bytes(_to_bytes(image)), hr=hr)


def sharpen(image: Picture) -> Picture:
    """Sharpens with an unsharp mask where the image differs from its blur.

    With ``b`` the image blurred by a Gaussian of 8 pixels, half of ``image - b`` is added, faded in around
    pixels where ``|image - b|`` exceeds 10/255, so that flat areas and their noise stay as they are.

    Args:
        image: ``float32 [H, W, 3]`` in ``[0, 1]``.

    Returns:
        The sharpened image, same shape, in ``[0, 1]``.
    """
    detail = image - _wide_blur(image)
    mask = _wide_blur((np.abs(detail) > _SHARPEN_THRESHOLD).astype(np.float32))
    sharpened: Picture = np.clip(image + _SHARPEN_WEIGHT * detail, 0.0, 1.0)
    result: Picture = image + mask * (sharpened - image)
    return result


def _wide_blur(image: Picture) -> Picture:
    blurred: Picture = cv2.GaussianBlur(image, (_SHARPEN_WIDTH, _SHARPEN_WIDTH), _SHARPEN_SIGMA)
    return blurred


def _filter(image: Picture, kernel: npt.NDArray[np.float32]) -> Picture:
    filtered: Picture = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return filtered


def _maybe_blur(image: Picture, stage: StagePreset, rng: np.random.Generator) -> Picture:
    if rng.random() >= stage.blur_probability:
        return image
    return _filter(image, draw_kernel(stage.kernel, rng))


def _resize(image: Picture, size: tuple[int, int], rng: np.random.Generator) -> Picture:
    modes = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
    mode = modes[int(rng.integers(len(modes)))]
    height, width = size
    # OpenCV maps the extent of the image onto that of the result: no mode and no rounded size shifts it.
    resized: Picture = cv2.resize(image, (width, height), interpolation=mode)
    return resized


def _resize_by_draw(image: Picture, base: tuple[int, int], stage: StagePreset, rng: np.random.Generator) -> Picture:
    """Resizes to `base` times a drawn factor."""
    enlarge, shrink, keep = stage.resize_probabilities
    low, high = stage.resize_range
    draw = rng.random() * (enlarge + shrink + keep)
    factor = 1.0
    if draw < enlarge:
        factor = rng.uniform(1.0, high)
    elif draw < enlarge + shrink:
        factor = rng.uniform(low, 1.0)
    size = (max(1, round(base[0] * factor)), max(1, round(base[1] * factor)))
    return _resize(image, size, rng)


def _final_resize(
    image: Picture, target: tuple[int, int], preset: DegradationPreset, rng: np.random.Generator
) -> Picture:
    image = _resize(image, target, rng)
    if rng.random() >= preset.final_sinc_probability:
        return image
    size = int(rng.choice(preset.second.kernel.sizes))
    return _filter(image, sinc_kernel(size, math.pi * rng.uniform(*preset.final_sinc_cutoff)))


def _add_noise(image: Picture, stage: StagePreset, rng: np.random.Generator) -> Picture:
    gaussian = rng.random() < stage.gaussian_probability
    gray = rng.random() < stage.gray_probability
    if gaussian:
        sigma = np.float32(rng.uniform(*stage.gaussian_sigma) / 255.0)
        shape = (*image.shape[:2], 1 if gray else 3)
        noise = sigma * rng.standard_normal(shape, dtype=np.float32)
    else:
        noise = np.float32(rng.uniform(*stage.poisson_scale)) * _poisson_noise(image, gray, rng)
    noisy: Picture = np.clip(image + noise, 0.0, 1.0)
    return noisy


def _poisson_noise(image: Picture, gray: bool, rng: np.random.Generator) -> Picture:
    """Shot noise of a sensor that counts 256 photons at white.

    The published recipes take the number of distinct 8-bit values in the image, rounded up to a power of two.
    That is 256 on most large crops, but a few on a small crop of plain sky, where the noise then drowns the
    picture. The constant keeps the noise independent of how large a crop is cut.
    """
    # Rounded to 8 bits, as a sensor's output is, which also removes what the resize overshot.
    signal = _to_bytes(image @ _LUMA[:, None] if gray else image)
    counts = rng.poisson(signal * (_PHOTONS / 255.0))
    return (counts / _PHOTONS).astype(np.float32) - _from_bytes(signal)


def _jpeg(image: Picture, stage: StagePreset, rng: np.random.Generator) -> Picture:
    low, high = stage.jpeg_quality
    quality = int(rng.integers(low, high + 1))
    pixels = cv2.cvtColor(_to_bytes(image), cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise RuntimeError(f"OpenCV could not encode a JPEG of shape {list(image.shape)}, quality {quality}")
    return _from_bytes(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def _to_bytes(image: Picture) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(image, 0.0, 1.0) * np.float32(255.0)).astype(np.uint8)
    return pixels


def _from_bytes(pixels: npt.NDArray[np.uint8]) -> Picture:
    return pixels.astype(np.float32) / np.float32(255.0)
