"""The second-order degradation that makes a low-resolution image out of a photograph.

Two rounds of blur, resize, noise and JPEG; the second round's JPEG swaps places at random with the resize to
the final size and the sinc filter after it. Source: Wang et al., "Real-ESRGAN: Training Real-World Blind
Super-Resolution with Pure Synthetic Data", 2021, section 3. All pictures here are ``float32 [H, W, 3]`` RGB
in ``[0, 1]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from framer.data.blur_kernels import KernelDraw
from framer.data.degradation_draws import (
    DegradationDraw,
    ResizeDraw,
    Step,
    check_shape,
    draw_degradation,
    draw_step_by_step,
)
from framer.data.levels import from_bytes, to_bytes
from framer.data.noise import NoiseDraw, NoiseSource, StreamNoise, noise_field, noise_of
from framer.data.presets import PRESETS, DegradationPreset, degradation_preset
from framer.extras import require

__all__ = [
    "PRESETS",
    "DegradationDraw",
    "DegradationPreset",
    "Degraded",
    "apply_degradation",
    "degradation_preset",
    "degrade",
    "draw_degradation",
    "sharpen",
]

Picture = npt.NDArray[np.float32]

SHARPEN_WIDTH = 51
SHARPEN_SIGMA = 8.0
SHARPEN_WEIGHT = 0.5
SHARPEN_THRESHOLD = 10.0 / 255.0
LUMA = (0.299, 0.587, 0.114)

_INTERPOLATION = {"area": "INTER_AREA", "linear": "INTER_LINEAR", "cubic": "INTER_CUBIC"}


class Degraded(NamedTuple):
    """What `degrade` returns.

    Attributes:
        lr: ``float32 [H / scale, W / scale, 3]`` in ``[0, 1]``, every value a multiple of 1/255.
        hr: ``float32 [H, W, 3]`` in ``[0, 1]``, sharpened where the preset says so; the training target.
        draw: What was drawn; `apply_degradation` makes the same of it again.
    """

    lr: Picture
    hr: Picture
    draw: DegradationDraw


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
    _check_image(hr)
    check_shape(hr.shape[:2], scale)
    target = image = sharpen(hr) if preset.sharpen_target else hr

    def apply(step: Step) -> None:
        nonlocal image
        image = _applied(step, image, lambda noise: StreamNoise(rng))

    # Poisson counts move the generator on by as much as the image asks for: a step can be drawn only after the one
    # before it has been applied, if the results of all seeds are to stay what they have always been.
    draw = draw_step_by_step(
        preset, hr.shape[:2], rng, scale=scale, noise_source=lambda: rng.bit_generator.state, on_step=apply
    )
    return Degraded(lr=from_bytes(to_bytes(image)), hr=target, draw=draw)


def apply_degradation(hr: Picture, draw: DegradationDraw) -> Degraded:
    """Degrades a high-resolution image by draws made before.

    With the draws that `degrade` returns, the result is that of `degrade`, bit for bit.

    Args:
        hr: ``float32 [H, W, 3]`` RGB in ``[0, 1]``, of the draws' shape.
        draw: The draws, of `draw_degradation` or of `degrade`.

    Returns:
        The low-resolution image and its target.

    Raises:
        ValueError: `hr` has another shape or dtype.
    """
    _check_image(hr)
    if hr.shape[:2] != draw.shape:
        raise ValueError(f"the draws are for an image of {list(draw.shape)} pixels, got one of {list(hr.shape[:2])}")
    target = image = sharpen(hr) if draw.sharpen_target else hr
    for step in draw.steps():
        image = _applied(step, image, noise_of)
    return Degraded(lr=from_bytes(to_bytes(image)), hr=target, draw=draw)


def _check_image(hr: Picture) -> None:
    if hr.dtype != np.float32 or hr.ndim != 3 or hr.shape[2] != 3:
        raise ValueError(f"expected a float32 [H, W, 3] image, got {hr.dtype} {list(hr.shape)}")


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
    mask = _wide_blur((np.abs(detail) > SHARPEN_THRESHOLD).astype(np.float32))
    sharpened: Picture = np.clip(image + SHARPEN_WEIGHT * detail, 0.0, 1.0)
    result: Picture = image + mask * (sharpened - image)
    return result


def _opencv() -> Any:
    # Not at the top: settings and plans are read where images never are.
    return require("cv2", extra="train")


def _wide_blur(image: Picture) -> Picture:
    blurred: Picture = _opencv().GaussianBlur(image, (SHARPEN_WIDTH, SHARPEN_WIDTH), SHARPEN_SIGMA)
    return blurred


def jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    """Compresses and decompresses an image.

    Args:
        pixels: ``uint8 [H, W, 3]`` RGB.
        quality: JPEG quality, 1 to 100.

    Returns:
        What the file shows, ``uint8 [H, W, 3]``.

    Raises:
        RuntimeError: OpenCV cannot encode it.
    """
    cv2 = _opencv()
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise RuntimeError(f"OpenCV could not encode a JPEG of shape {list(pixels.shape)}, quality {quality}")
    decoded: npt.NDArray[np.uint8] = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return decoded


def _applied(step: Step, image: Picture, noise: Callable[[NoiseDraw], NoiseSource]) -> Picture:
    if isinstance(step, KernelDraw):
        cv2 = _opencv()
        filtered: Picture = cv2.filter2D(image, -1, step.weights(), borderType=cv2.BORDER_REFLECT_101)
        return filtered
    if isinstance(step, ResizeDraw):
        return _resized(image, step)
    if isinstance(step, NoiseDraw):
        return _noisy(image, step, noise(step))
    return from_bytes(jpeg(to_bytes(image), step.quality))


def _resized(image: Picture, draw: ResizeDraw) -> Picture:
    height, width = draw.size
    # OpenCV maps the extent of the image onto that of the result: no mode and no rounded size shifts it.
    cv2 = _opencv()
    resized: Picture = cv2.resize(image, (width, height), interpolation=getattr(cv2, _INTERPOLATION[draw.mode]))
    return resized


def _noisy(image: Picture, draw: NoiseDraw, source: NoiseSource) -> Picture:
    def signal() -> npt.NDArray[np.uint8]:
        return to_bytes(image @ np.array(LUMA, dtype=np.float32)[:, None] if draw.gray else image)

    height, width = image.shape[:2]
    noisy: Picture = np.clip(image + noise_field(draw, (height, width), signal, source), 0.0, 1.0)
    return noisy
