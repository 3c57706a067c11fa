"""Blur kernels of the degradation: Gaussians, their generalisations, and the sinc.

With ``q(p) = p^T S^-1 p`` the squared distance of the pixel ``p`` from the centre under the covariance ``S``,
and every kernel divided by its sum:

* Gaussian, isotropic or anisotropic: ``exp(-q / 2)``
* generalised Gaussian: ``exp(-q^beta / 2)``
* plateau: ``1 / (1 + q^beta)``
* sinc, the circular ideal low-pass of cutoff ``w``: ``w J1(w r) / (2 pi r)``, at the centre ``w^2 / (4 pi)``

Source: Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", 2021,
section 3; Liu et al., "Estimating generalized Gaussian blur kernels for out-of-focus image deblurring", 2020,
for the generalised and the plateau kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from framer.data.presets import KernelPreset, KernelShape, Range
from framer.extras import require

Kernel = npt.NDArray[np.float32]
"""``float32 [size, size]``, of odd size, summing to 1, and equal to itself turned by 180 degrees."""


@lru_cache(maxsize=64)
def _pixel_offsets(size: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    axis = np.arange(size, dtype=np.float64) - (size - 1) / 2
    return axis[None, :], axis[:, None]


@lru_cache(maxsize=64)
def _radius(size: int) -> npt.NDArray[np.float64]:
    x, y = _pixel_offsets(size)
    radius: npt.NDArray[np.float64] = np.hypot(x, y)
    return radius


def _squared_distance(size: int, sigma_x: float, sigma_y: float, rotation: float) -> npt.NDArray[np.float64]:
    x, y = _pixel_offsets(size)
    cosine, sine = math.cos(rotation), math.sin(rotation)
    squared: npt.NDArray[np.float64] = ((cosine * x + sine * y) / sigma_x) ** 2 + (
        (cosine * y - sine * x) / sigma_y
    ) ** 2
    return squared


def _normalized(kernel: npt.NDArray[np.float64]) -> Kernel:
    normalized: Kernel = (kernel / kernel.sum()).astype(np.float32)
    return normalized


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, rotation: float = 0.0, *, beta: float = 1.0) -> Kernel:
    """Makes a Gaussian kernel, generalised when `beta` is not 1.

    Args:
        size: Odd width in pixels.
        sigma_x: Standard deviation along the first principal axis, in pixels.
        sigma_y: Standard deviation along the second.
        rotation: Angle of the first principal axis against the image's x axis, in radians.
        beta: Exponent on the squared distance; below 1 peaked, above 1 flat.

    Returns:
        ``float32 [size, size]`` with sum 1.
    """
    return _normalized(np.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, rotation) ** beta))


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, rotation: float = 0.0, *, beta: float = 1.0) -> Kernel:
    """Makes a plateau kernel, ``1 / (1 + q^beta)``; arguments and result as for `gaussian_kernel`."""
    return _normalized(1.0 / (1.0 + _squared_distance(size, sigma_x, sigma_y, rotation) ** beta))


def sinc_kernel(size: int, cutoff: float) -> Kernel:
    """Makes the kernel of a circular ideal low-pass filter, truncated to a square.

    Args:
        size: Odd width in pixels.
        cutoff: Cutoff frequency in radians a pixel, in ``(0, pi]``.

    Returns:
        ``float32 [size, size]`` with sum 1; it has negative lobes, which is what makes it ring.
    """
    bessel = require("scipy.special", extra="train")
    radius = _radius(size)
    centre = radius == 0.0
    safe = np.where(centre, 1.0, radius)
    kernel = np.where(centre, cutoff**2 / (4.0 * math.pi), cutoff * bessel.j1(cutoff * safe) / (2.0 * math.pi * safe))
    return _normalized(kernel)


@dataclass(frozen=True)
class KernelDraw:
    """The parameters of a drawn kernel; those that its shape does not have stay at their defaults.

    Attributes:
        shape: The family.
        size: Odd width in pixels.
        sigma_x: Standard deviation along the first principal axis, in pixels.
        sigma_y: Standard deviation along the second; equal to `sigma_x` for isotropic shapes.
        rotation: Angle of the first principal axis against the image's x axis, in radians.
        beta: Exponent of generalised Gaussian and plateau kernels.
        cutoff: Cutoff of a sinc in radians a pixel.
    """

    shape: KernelShape | Literal["sinc"]
    size: int
    sigma_x: float = 0.0
    sigma_y: float = 0.0
    rotation: float = 0.0
    beta: float = 1.0
    cutoff: float = 0.0

    def weights(self) -> Kernel:
        """Makes the kernel, ``float32 [size, size]`` with sum 1."""
        if self.shape == "sinc":
            return sinc_kernel(self.size, self.cutoff)
        make = plateau_kernel if self.shape.startswith("plateau") else gaussian_kernel
        return make(self.size, self.sigma_x, self.sigma_y, self.rotation, beta=self.beta)


def _draw_beta(bounds: Range, rng: np.random.Generator) -> float:
    # Either side of 1 is equally likely, however long: 1 is where the kernel is a plain Gaussian.
    low, high = bounds
    below = rng.random() < 0.5
    return float(rng.uniform(low, 1.0) if below else rng.uniform(1.0, high))


def draw_kernel(preset: KernelPreset, rng: np.random.Generator) -> KernelDraw:
    """Draws a blur kernel.

    Args:
        preset: Shapes, their probabilities and ranges.
        rng: Source of every draw.

    Returns:
        The kernel's parameters.
    """
    size = int(rng.choice(preset.sizes))
    if rng.random() < preset.sinc_probability:
        bounds = preset.sinc_cutoff_small if size < preset.small_below else preset.sinc_cutoff_large
        return KernelDraw("sinc", size, cutoff=math.pi * rng.uniform(*bounds))
    shape = draw_shape(preset, rng)
    sigma_x = rng.uniform(*preset.sigma)
    sigma_y, rotation, beta = sigma_x, 0.0, 1.0
    if shape.endswith("aniso"):
        sigma_y = rng.uniform(*preset.sigma)
        rotation = rng.uniform(-math.pi, math.pi)
    if shape.startswith("generalized"):
        beta = _draw_beta(preset.beta_generalized, rng)
    elif shape.startswith("plateau"):
        beta = _draw_beta(preset.beta_plateau, rng)
    return KernelDraw(shape, size, sigma_x, sigma_y, rotation, beta)


def draw_shape(preset: KernelPreset, rng: np.random.Generator) -> KernelShape:
    """Draws the shape of a kernel that is not a sinc, by the preset's probabilities."""
    draw = rng.random() * sum(probability for _, probability in preset.shapes)
    for shape, probability in preset.shapes:
        draw -= probability
        if draw < 0.0:
            return shape
    return preset.shapes[-1][0]
