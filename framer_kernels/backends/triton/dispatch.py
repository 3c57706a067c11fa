"""Which kernels compute what: those that need no bins where bands are radial and vectors complex, else those that do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from framer_kernels.backends.triton import launchers, spectral
from framer_kernels.bands import BandSplit
from framer_kernels.products import BandProducts, GradientCoefficients
from framer_kernels.types import Representation


def _packed(bands: BandSplit, representation: Representation) -> bool:
    return bands.kind == "radial" and representation == "complex"


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
    return (launchers if _packed(bands, representation) else spectral).measure(
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
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: Representation,
    shared_negatives: bool,
    needed: Sequence[bool],
    precision: str,
) -> list[Tensor | None]:
    """Gradients of the students; arguments are those of `launchers.gradients`."""
    return (launchers if _packed(bands, representation) else spectral).gradients(
        maps,
        teacher,
        coefficients,
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
    return (launchers if _packed(bands, representation) else spectral).cross_products(
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
    (launchers if _packed(bands, representation) else spectral).add_cross_gradients(
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
