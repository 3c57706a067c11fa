"""Which kernels compute what: where bands are radial and vectors complex no bins need be formed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from framer_kernels.backends import ProductsBackend
from framer_kernels.backends.triton import launchers, spectral
from framer_kernels.bands import BandSplit
from framer_kernels.products import BandProducts, GradientCoefficients
from framer_kernels.types import Representation


def _kernels(bands: BandSplit, representation: Representation) -> ProductsBackend:
    packed = bands.kind == "radial" and representation == "complex"
    return cast(ProductsBackend, launchers if packed else spectral)


def measure(
    maps: Sequence[Tensor],
    teacher: Tensor,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: Representation,
    shared_negatives: bool,
    precision: str,
) -> BandProducts:
    """Measures the maps of one rank; arguments are those of `launchers.measure`."""
    return _kernels(bands, representation).measure(
        maps,
        teacher,
        negatives=negatives,
        bands=bands,
        representation=representation,
        shared_negatives=shared_negatives,
        precision=precision,
    )


def gradients(
    maps: Sequence[Tensor],
    teacher: Tensor,
    coefficients: GradientCoefficients,
    upstream: Tensor,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: Representation,
    shared_negatives: bool,
    needed: Sequence[bool],
    precision: str,
) -> list[Tensor | None]:
    """Gradients of the students; arguments are those of `launchers.gradients`."""
    return _kernels(bands, representation).gradients(
        maps,
        teacher,
        coefficients,
        upstream,
        negatives=negatives,
        bands=bands,
        representation=representation,
        shared_negatives=shared_negatives,
        needed=needed,
        precision=precision,
    )


def cross_products(
    maps: Sequence[Tensor],
    teacher: Tensor,
    targets: Tensor,
    target_teacher: Tensor,
    *,
    bands: BandSplit,
    representation: Representation,
    precision: str,
) -> Tensor:
    """High-band products with another rank's maps; arguments are those of `launchers.cross_products`."""
    return _kernels(bands, representation).cross_products(
        maps, teacher, targets, target_teacher, bands=bands, representation=representation, precision=precision
    )


def add_cross_gradients(
    gradients: Sequence[Tensor],
    weights: Tensor,
    maps: Sequence[Tensor],
    teacher: Tensor,
    targets: Tensor,
    target_teacher: Tensor,
    *,
    bands: BandSplit,
    representation: Representation,
    precision: str,
) -> None:
    """Adds the gradients of `cross_products`; arguments are those of `launchers.add_cross_gradients`."""
    _kernels(bands, representation).add_cross_gradients(
        gradients,
        weights,
        maps,
        teacher,
        targets,
        target_teacher,
        bands=bands,
        representation=representation,
        precision=precision,
    )
