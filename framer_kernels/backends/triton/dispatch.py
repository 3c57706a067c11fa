"""Which kernels compute what: those that need no bins where bands are radial and vectors complex, else those that do.

Arguments, results and errors are those of `framer_kernels.backends.ProductsBackend`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from framer_kernels.backends import ProductsBackend
from framer_kernels.backends.triton import packed, spectral
from framer_kernels.products import BandProducts, GradientCoefficients


def _kernels(settings: dict[str, Any]) -> ProductsBackend:
    without_bins = settings["bands"].kind == "radial" and settings["representation"] == "complex"
    return cast(ProductsBackend, packed if without_bins else spectral)


def measure(maps: Sequence[Tensor], teacher: Tensor, **settings: Any) -> BandProducts:
    """Measures the maps of one rank."""
    return _kernels(settings).measure(maps, teacher, **settings)


def gradients(
    maps: Sequence[Tensor], teacher: Tensor, coefficients: GradientCoefficients, upstream: Tensor, **settings: Any
) -> list[Tensor | None]:
    """Gradients of the students."""
    return _kernels(settings).gradients(maps, teacher, coefficients, upstream, **settings)


def cross_products(
    maps: Sequence[Tensor], teacher: Tensor, targets: Tensor, target_teacher: Tensor, **settings: Any
) -> Tensor:
    """High-band products of students with maps of another rank."""
    return _kernels(settings).cross_products(maps, teacher, targets, target_teacher, **settings)


def add_cross_gradients(
    gradients: Sequence[Tensor],
    weights: Tensor,
    maps: Sequence[Tensor],
    teacher: Tensor,
    targets: Tensor,
    target_teacher: Tensor,
    **settings: Any,
) -> None:
    """Adds what the products of `cross_products` contribute to the students' gradients."""
    _kernels(settings).add_cross_gradients(gradients, weights, maps, teacher, targets, target_teacher, **settings)
