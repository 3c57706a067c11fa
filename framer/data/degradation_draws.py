"""What a degradation has drawn, apart from its application to an image.

The draws are a value: they can be printed, counted, applied by another implementation or to another image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from framer.data.blur_kernels import KernelDraw, draw_kernel
from framer.data.noise import NoiseDraw, NoiseKind
from framer.data.presets import DegradationPreset, StagePreset

ResizeMode = Literal["area", "linear", "cubic"]

_MODES: tuple[ResizeMode, ...] = ("area", "linear", "cubic")


@dataclass(frozen=True)
class ResizeDraw:
    """How an image is resized.

    Attributes:
        factor: Size of the result against the size that the round keeps about: HR's in the first, LR's after it.
        size: Height and width of the result in pixels.
        mode: The interpolation; `"area"` averages when it shrinks, the others do not look further than their
            nearest 2 x 2 and 4 x 4 pixels.
    """

    factor: float
    size: tuple[int, int]
    mode: ResizeMode


@dataclass(frozen=True)
class JpegDraw:
    """How strongly an image is compressed.

    Attributes:
        quality: JPEG quality in the scale of libjpeg, 1 to 100.
    """

    quality: int


Step = KernelDraw | ResizeDraw | NoiseDraw | JpegDraw
"""One operation on an image."""


@dataclass(frozen=True)
class StageDraw:
    """The draws of one round.

    Attributes:
        blur: The blur kernel, if the round blurs.
        resize: The resize.
        noise: The noise.
        jpeg: The compression.
    """

    blur: KernelDraw | None
    resize: ResizeDraw
    noise: NoiseDraw
    jpeg: JpegDraw


@dataclass(frozen=True)
class DegradationDraw:
    """All draws of one degradation.

    Attributes:
        shape: Height and width of the HR image that they are for.
        scale: Factor between the resolutions.
        sharpen_target: Whether the HR image is sharpened before.
        first: The first round.
        second: The second round.
        final_resize: The resize to the size of the LR image.
        final_sinc: The sinc filter after it, if there is one.
        jpeg_last: Whether the second round's JPEG comes after the final resize and its filter, or before.
    """

    shape: tuple[int, int]
    scale: int
    sharpen_target: bool
    first: StageDraw
    second: StageDraw
    final_resize: ResizeDraw
    final_sinc: KernelDraw | None
    jpeg_last: bool

    @property
    def lr_shape(self) -> tuple[int, int]:
        """Height and width of the LR image."""
        return self.shape[0] // self.scale, self.shape[1] // self.scale

    def steps(self) -> tuple[Step, ...]:
        """The operations in the order in which they are applied, after the sharpening."""
        first, second = self.first, self.second
        final = (self.final_resize, self.final_sinc)
        steps = (
            first.blur,
            first.resize,
            first.noise,
            first.jpeg,
            second.blur,
            second.resize,
            second.noise,
            *((*final, second.jpeg) if self.jpeg_last else (second.jpeg, *final)),
        )
        return tuple(step for step in steps if step is not None)


def draw_degradation(
    preset: DegradationPreset, shape: tuple[int, int], rng: np.random.Generator, *, scale: int = 4
) -> DegradationDraw:
    """Draws a degradation without an image; the noise fields get seeds of their own.

    The law is that of `degrade`, but not the numbers: there, how far the noise moves the generator on depends
    on the image.

    Args:
        preset: Ranges and probabilities.
        shape: Height and width of the HR image; multiples of `scale`.
        rng: Source of every draw.
        scale: Factor between the resolutions.

    Returns:
        The draws.

    Raises:
        ValueError: `shape` is no multiple of `scale`.
    """
    return draw_step_by_step(
        preset, shape, rng, scale=scale, noise_source=lambda: int(rng.integers(1 << 63)), on_step=lambda step: None
    )


def draw_step_by_step(
    preset: DegradationPreset,
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    scale: int,
    noise_source: Callable[[], int | Mapping[str, Any]],
    on_step: Callable[[Step], None],
) -> DegradationDraw:
    """Draws a degradation, with something done after each draw and before the next.

    Args:
        preset: Ranges and probabilities.
        shape: Height and width of the HR image; multiples of `scale`.
        rng: Source of every draw.
        scale: Factor between the resolutions.
        noise_source: Gives the `source` of each noise when the rest of it is drawn.
        on_step: Called with each operation, in the order of application; may itself draw from `rng`.

    Returns:
        The draws.

    Raises:
        ValueError: `shape` is no multiple of `scale`.
    """
    check_shape(shape, scale)
    height, width = shape
    target = (height // scale, width // scale)

    def blur(stage: StagePreset) -> KernelDraw | None:
        if rng.random() >= stage.blur_probability:
            return None
        kernel = draw_kernel(stage.kernel, rng)
        on_step(kernel)
        return kernel

    def resize(base: tuple[int, int], factor: float) -> ResizeDraw:
        size = (max(1, round(base[0] * factor)), max(1, round(base[1] * factor)))
        drawn = ResizeDraw(factor, size, _MODES[int(rng.integers(len(_MODES)))])
        on_step(drawn)
        return drawn

    def noise(stage: StagePreset) -> NoiseDraw:
        kind: NoiseKind = "gaussian" if rng.random() < stage.gaussian_probability else "poisson"
        gray = rng.random() < stage.gray_probability
        strength = rng.uniform(*(stage.gaussian_sigma if kind == "gaussian" else stage.poisson_scale))
        drawn = NoiseDraw(kind, gray, strength, noise_source())
        on_step(drawn)
        return drawn

    def jpeg(stage: StagePreset) -> JpegDraw:
        low, high = stage.jpeg_quality
        drawn = JpegDraw(int(rng.integers(low, high + 1)))
        on_step(drawn)
        return drawn

    def final() -> tuple[ResizeDraw, KernelDraw | None]:
        resized = resize(target, 1.0)
        if rng.random() >= preset.final_sinc_probability:
            return resized, None
        size = int(rng.choice(preset.second.kernel.sizes))
        sinc = KernelDraw("sinc", size, cutoff=math.pi * rng.uniform(*preset.final_sinc_cutoff))
        on_step(sinc)
        return resized, sinc

    first = StageDraw(
        blur(preset.first),
        resize(shape, _draw_factor(preset.first, rng)),
        noise(preset.first),
        jpeg(preset.first),
    )
    second_blur = blur(preset.second)
    second_resize = resize(target, _draw_factor(preset.second, rng))
    second_noise = noise(preset.second)
    jpeg_last = rng.random() < 0.5
    if jpeg_last:
        final_resize, final_sinc = final()
        second_jpeg = jpeg(preset.second)
    else:
        second_jpeg = jpeg(preset.second)
        final_resize, final_sinc = final()
    return DegradationDraw(
        shape=(height, width),
        scale=scale,
        sharpen_target=preset.sharpen_target,
        first=first,
        second=StageDraw(second_blur, second_resize, second_noise, second_jpeg),
        final_resize=final_resize,
        final_sinc=final_sinc,
        jpeg_last=jpeg_last,
    )


def check_shape(shape: tuple[int, int], scale: int) -> None:
    """Refuses sizes of HR images that LR images do not divide.

    Raises:
        ValueError: Height or width is not positive, or no multiple of `scale`; or `scale` is not positive.
    """
    height, width = shape
    if scale < 1 or height % scale or width % scale or height < 1 or width < 1:
        raise ValueError(f"expected height and width to be multiples of scale={scale}, got {height}x{width}")


def _draw_factor(stage: StagePreset, rng: np.random.Generator) -> float:
    enlarge, shrink, keep = stage.resize_probabilities
    low, high = stage.resize_range
    draw = rng.random() * (enlarge + shrink + keep)
    if draw < enlarge:
        return rng.uniform(1.0, high)
    if draw < enlarge + shrink:
        return rng.uniform(low, 1.0)
    return 1.0
