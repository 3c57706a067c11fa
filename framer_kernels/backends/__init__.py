"""Implementations of the measurements that every operation is made of, and the choice among them.

A backend is a module with the functions of `ProductsBackend`; none imports another.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Literal, Protocol, cast

from torch import Tensor

from framer_kernels.bands import BandSplit
from framer_kernels.products import BandProducts, GradientCoefficients
from framer_kernels.types import Backend, Representation

BackendName = Literal["triton", "portable", "reference"]


class ProductsBackend(Protocol):
    """What a backend implements; `framer_kernels.backends.portable` says what the arguments mean.

    A backend may also have a ``loss_and_coefficients`` of its own, with the arguments of that in
    `framer_kernels.objective`.
    """

    def measure(
        self,
        maps: Sequence[Tensor],
        teacher: Tensor,
        *,
        negatives: Sequence[int],
        bands: BandSplit,
        representation: Representation,
        shared_negatives: bool,
        precision: str,
    ) -> BandProducts:
        """Energies, norms and products of one rank's maps."""

    def gradients(
        self,
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
        """Gradients of the students."""

    def cross_products(
        self,
        maps: Sequence[Tensor],
        teacher: Tensor,
        targets: Tensor,
        target_teacher: Tensor,
        *,
        bands: BandSplit,
        representation: Representation,
        precision: str,
    ) -> Tensor:
        """High-band products with another rank's maps."""

    def add_cross_gradients(
        self,
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
        """Adds the gradients of `cross_products`."""


def load_backend(name: str) -> ProductsBackend:
    """The module of a backend."""
    return cast(ProductsBackend, importlib.import_module(f"framer_kernels.backends.{name}"))


def choose_backend(
    backend: Backend,
    features: Tensor,
    *,
    bands: BandSplit,
    representation: Representation,
    shared_negatives: bool = False,
    group: bool = False,
) -> BackendName:
    """The backend for these features.

    ``auto`` takes Triton on CUDA and ROCm devices where it can compute what is asked, and the portable backend
    elsewhere. Where Triton cannot be imported it warns once.

    Args:
        backend: What the caller asked for.
        features: One of the maps.
        bands: Division into bands.
        representation: What the cosine compares.
        shared_negatives: Whether other images' negatives repel too.
        group: Whether other ranks' samples are compared with.

    Raises:
        ValueError: ``triton`` was asked for and cannot compute this; the message says why.
    """
    if backend in ("portable", "reference"):
        return cast(BackendName, backend)
    if backend == "auto" and features.device.type != "cuda":
        return "portable"
    reason = triton_problem()
    if reason is None and features.device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):
        reason = f"its kernels run on CUDA and ROCm devices, not on {features.device}"
    if reason is not None:
        if backend == "triton":
            raise ValueError(f"backend='triton': {reason}; backend='portable' computes the same")
        _warn_once(reason)
        return "portable"
    from framer_kernels.backends import triton

    reason = triton.supports(
        features, bands=bands, representation=representation, shared_negatives=shared_negatives, group=group
    )
    if reason is None:
        return "triton"
    if backend == "triton":
        raise ValueError(f"backend='triton': {reason}; backend='portable' computes the same")
    return "portable"


@cache
def triton_problem() -> str | None:
    """Why Triton cannot be used on this machine; None if it can be imported."""
    try:
        importlib.import_module("framer_kernels.backends.triton")
    except Exception as error:  # a broken installation may raise anything
        return f"Triton cannot be imported ({type(error).__name__}: {error})"
    return None


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"framer_kernels computes without fused kernels: {reason}", RuntimeWarning, stacklevel=3)
