"""The degradation presets as data: the ranges and probabilities of three published training recipes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from framer.errors import UserError

Range = tuple[float, float]
"""Bounds of a uniform draw."""

KernelShape = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
"""The families of blur kernels besides the sinc."""


@dataclass(frozen=True)
class KernelPreset:
    """How a blur kernel is drawn.

    Attributes:
        sigma: Range of the standard deviation along each axis, in pixels.
        beta_generalized: Range of the exponent of generalised Gaussian kernels.
        beta_plateau: Range of the exponent of plateau kernels.
        shapes: Probability of each shape when the kernel is not a sinc; they sum to 1.
        sinc_probability: Probability of a sinc (ideal low-pass) kernel.
        sizes: The odd widths that are drawn from, in pixels.
        small_below: Width below which a sinc kernel counts as small.
        sinc_cutoff_small: Range of the cutoff of small sinc kernels, in units of pi radians a pixel.
        sinc_cutoff_large: The same for the others.
    """

    sigma: Range
    beta_generalized: Range
    beta_plateau: Range
    shapes: tuple[tuple[KernelShape, float], ...] = (
        ("iso", 0.45),
        ("aniso", 0.25),
        ("generalized_iso", 0.12),
        ("generalized_aniso", 0.03),
        ("plateau_iso", 0.12),
        ("plateau_aniso", 0.03),
    )
    sinc_probability: float = 0.1
    sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    small_below: int = 13
    sinc_cutoff_small: Range = (1 / 3, 1.0)
    sinc_cutoff_large: Range = (1 / 5, 1.0)


@dataclass(frozen=True)
class StagePreset:
    """One of the two rounds of blur, resize, noise and JPEG.

    Attributes:
        blur_probability: Probability that the round blurs at all.
        kernel: How its blur kernel is drawn.
        resize_probabilities: Probabilities of enlarging, shrinking and keeping the size.
        resize_range: Smallest and largest resize factor: shrinking draws from ``[low, 1]``, enlarging from
            ``[1, high]``.
        gaussian_probability: Probability of Gaussian noise; it is Poisson noise otherwise.
        gaussian_sigma: Range of the Gaussian standard deviation, in units of 1/255.
        poisson_scale: Range of the factor on the Poisson noise.
        gray_probability: Probability that all channels get the same noise.
        jpeg_quality: Lowest and highest JPEG quality, both included.
    """

    blur_probability: float
    kernel: KernelPreset
    resize_probabilities: tuple[float, float, float]
    resize_range: Range
    gaussian_probability: float
    gaussian_sigma: Range
    poisson_scale: Range
    gray_probability: float
    jpeg_quality: tuple[int, int]


@dataclass(frozen=True)
class DegradationPreset:
    """A complete second-order degradation.

    Attributes:
        name: The name it goes by in configs.
        first: The first round; the image keeps about its own resolution.
        second: The second round, at about the target resolution; its JPEG swaps places with the final resize.
        final_sinc_probability: Probability of a sinc filter after the final resize.
        final_sinc_cutoff: Range of that filter's cutoff, in units of pi radians a pixel.
        sharpen_target: Whether the HR image is sharpened by an unsharp mask before it is degraded; the
            sharpened image is then the training target.
    """

    name: str
    first: StagePreset
    second: StagePreset
    final_sinc_probability: float
    final_sinc_cutoff: Range
    sharpen_target: bool


_HEAVY = DegradationPreset(
    name="heavy",
    first=StagePreset(
        blur_probability=1.0,
        kernel=KernelPreset(sigma=(0.2, 3.0), beta_generalized=(0.5, 4.0), beta_plateau=(1.0, 2.0)),
        resize_probabilities=(0.2, 0.7, 0.1),
        resize_range=(0.15, 1.5),
        gaussian_probability=0.5,
        gaussian_sigma=(1.0, 30.0),
        poisson_scale=(0.05, 3.0),
        gray_probability=0.4,
        jpeg_quality=(30, 95),
    ),
    second=StagePreset(
        blur_probability=0.8,
        kernel=KernelPreset(sigma=(0.2, 1.5), beta_generalized=(0.5, 4.0), beta_plateau=(1.0, 2.0)),
        resize_probabilities=(0.3, 0.4, 0.3),
        resize_range=(0.3, 1.2),
        gaussian_probability=0.5,
        gaussian_sigma=(1.0, 25.0),
        poisson_scale=(0.05, 2.5),
        gray_probability=0.4,
        jpeg_quality=(30, 95),
    ),
    final_sinc_probability=0.8,
    final_sinc_cutoff=(1 / 3, 1.0),
    sharpen_target=True,
)

_LIGHT = replace(
    _HEAVY,
    name="light",
    first=replace(
        _HEAVY.first,
        resize_range=(0.3, 1.5),
        gaussian_sigma=(1.0, 15.0),
        poisson_scale=(0.05, 2.0),
        jpeg_quality=(60, 95),
    ),
    second=replace(
        _HEAVY.second,
        blur_probability=0.5,
        resize_range=(0.6, 1.2),
        gaussian_sigma=(1.0, 12.0),
        poisson_scale=(0.05, 1.0),
        jpeg_quality=(60, 100),
    ),
    sharpen_target=False,
)

_STABLESR = replace(
    _LIGHT,
    name="stablesr",
    first=replace(
        _LIGHT.first,
        kernel=KernelPreset(sigma=(0.2, 1.5), beta_generalized=(0.5, 2.0), beta_plateau=(1.0, 1.5)),
    ),
    second=replace(
        _LIGHT.second,
        kernel=KernelPreset(sigma=(0.2, 1.0), beta_generalized=(0.5, 2.0), beta_plateau=(1.0, 1.5)),
    ),
    sharpen_target=True,
)

PRESETS: dict[str, DegradationPreset] = {preset.name: preset for preset in (_HEAVY, _LIGHT, _STABLESR)}
"""`heavy` is the recipe of Real-ESRGAN, also used by SeeSR, DiT4SR and OSEDiff; `light` that of PiSA-SR and
FaithDiff; `stablesr` that of StableSR."""


def degradation_preset(name: str) -> DegradationPreset:
    """Looks a preset up by its name.

    Raises:
        UserError: There is no such preset; the message lists those there are.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise UserError(f"unknown degradation preset {name!r}; expected one of {', '.join(sorted(PRESETS))}") from None
