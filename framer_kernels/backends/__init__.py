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

import torch
from torch import Tensor

from framer_kernels.bands import BandSplit
from framer_kernels.products import BandProducts, GradientCoefficients
from framer_kernels.types import Representation

BackendName = Literal["triton", "portable"]


class ProductsBackend(Protocol):
    """What a backend implements.

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
        """Energies, norms and products of one rank's maps.

        Args:
            maps: M feature maps ``[B, C, H, W]`` of one dtype, any strides.
            teacher: Like them.
            negatives: For each of the first N maps, the students, the index of its negative among the maps.
            bands: Division into bands; quantile bands are taken from the teacher.
            representation: What the cosine compares.
            shared_negatives: Whether products with other images' negatives are wanted.
            precision: ``bf16x3``, ``tf32`` or ``ieee``; a backend whose matrix products are exact ignores it.

        Raises:
            ValueError: The backend does not take such maps, or does not know the precision.
        """

    def gradients(
        self,
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
        """Gradients of the students.

        Args:
            maps: As in `measure`.
            teacher: As in `measure`.
            coefficients: Those of this rank's targets, ``teacher_hf`` ``[N, B, B]``, or ``[N, B, 0]`` where none is
                needed.
            upstream: What coefficients are multiplied by, the gradient of the losses, ``[N, B]``, any strides.
            negatives: As in `measure`.
            bands: As in `measure`.
            representation: As in `measure`.
            shared_negatives: As in `measure`.
            needed: For each student whether its gradient is wanted.
            precision: As in `measure`.

        Returns:
            For each student a map of its dtype and layout, or None.

        Raises:
            ValueError: As in `measure`.
        """

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
        """High-band products of students with maps of another rank.

        Args:
            maps: n students ``[B, C, H, W]``.
            teacher: Their teacher, from which quantile bands are taken.
            targets: ``[G, C, H, W]``.
            target_teacher: The teacher of ``targets``, which may be the same.
            bands: Division into bands.
            representation: What the cosine compares.
            precision: As in `measure`.

        Returns:
            ``[n, B, G]``, float64 or float32.

        Raises:
            ValueError: As in `measure`.
        """

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
        """Adds what the products of `cross_products` contribute to the students' gradients.

        Args:
            gradients: n maps, added to.
            weights: Derivatives with respect to the products, ``[n, B, G]``.
            maps: As in `cross_products`.
            teacher: As in `cross_products`.
            targets: As in `cross_products`.
            target_teacher: As in `cross_products`.
            bands: As in `cross_products`.
            representation: As in `cross_products`.
            precision: As in `measure`.

        Raises:
            ValueError: As in `measure`.
        """


def load_backend(name: str) -> ProductsBackend:
    """The module of a backend."""
    return cast(ProductsBackend, importlib.import_module(f"framer_kernels.backends.{name}"))


def choose_backend(backend: str, features: Tensor) -> BackendName:
    """The backend for these features.

    ``auto`` takes Triton on CUDA and ROCm devices where it can compute what is asked, and the portable backend
    elsewhere. Where Triton cannot be imported, or its kernels do not run, it warns once. Operators call this when they
    run, not when they are traced.

    Args:
        backend: ``auto``, ``triton`` or ``portable``.
        features: One of the maps.

    Raises:
        ValueError: ``triton`` was asked for and cannot compute this; the message says why.
    """
    gpu = _is_gpu(features.device)
    if backend == "portable" or (backend == "auto" and not gpu):
        return "portable"
    problem = unsupported = None
    if not gpu and not os.environ.get("TRITON_INTERPRET"):
        problem = f"its kernels run on CUDA and ROCm devices, not on {features.device}"
    elif (problem := _import_problem()) is None:
        from framer_kernels.backends import triton

        unsupported = triton.supports(features)
        problem = None if unsupported else _launch_problem(features.device)
    if problem is None and unsupported is None:
        return "triton"
    if backend == "triton":
        raise ValueError(f"backend='triton': {problem or unsupported}; backend='portable' computes the same")
    if problem is not None:
        _warn_once(problem)
    return "portable"


def triton_problem(device: torch.device) -> str | None:
    """Why Triton cannot be used on a device; None if a kernel was compiled and ran there.

    Args:
        device: A CUDA or ROCm device, or with Triton's interpreter the CPU.
    """
    return _import_problem() or _launch_problem(device)


def _is_gpu(device: torch.device) -> bool:
    # ROCm devices are called cuda, too.
    return device.type == "cuda"


@cache
def _import_problem() -> str | None:
    try:
        importlib.import_module("framer_kernels.backends.triton")
    except Exception as error:  # a broken installation may raise anything
        return f"Triton cannot be imported ({_brief(error)})"
    return None


@cache
def _launch_problem(device: torch.device) -> str | None:
    try:
        importlib.import_module("framer_kernels.backends.triton.probe").run(device)
    except torch.OutOfMemoryError:
        raise  # says nothing about Triton, and would be remembered
    except Exception as error:  # of a C compiler, of ptxas, of the driver
        return f"Triton's kernels do not run ({_brief(error)})"
    return None


def _brief(error: Exception) -> str:
    # Compilers print pages.
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"framer_kernels computes without fused kernels: {reason}", RuntimeWarning, stacklevel=2)
