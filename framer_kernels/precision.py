"""The arithmetic that features of a given dtype are computed in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from framer_kernels.types import Precision

DEFAULT_PRECISION: Precision = "bf16x3"
"""It runs on NVIDIA and AMD, and its error is small against that of bf16 features."""

NORM_FLOOR = 1e-12
"""Norms are taken to be at least this, the clamp of `torch.nn.functional.normalize`."""

ENERGY_EPS = 1e-9
"""The epsilon of the energies and of FAW."""

_ROUNDING = 8
"""Of exact arithmetic, in units in the last place."""

_TRITON_ROUNDING: dict[str, float] = {"bf16x3": 2.0**-15, "tf32": 2.0**-10}
"""Three and two and a half times the largest that maps without a high band had there (docs/kernels.md)."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the computation: float64 stays exact, everything narrower is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rounding(dtype: torch.dtype, backend: str, precision: str) -> float:
    """The norm of a band vector, relative to the whole map's, up to which it may be rounding error and no more.

    Args:
        dtype: Of the features.
        backend: ``triton``, which alone multiplies in the given precision, or ``portable``.
        precision: A `Precision`.
    """
    exact = _ROUNDING * torch.finfo(compute_dtype(dtype)).eps
    return _TRITON_ROUNDING.get(precision, exact) if backend == "triton" else exact


def autocast_disabled(device: torch.device) -> AbstractContextManager[object]:
    """Context in which autocast does not touch the loss.

    A caller's autocast region would otherwise round the matrix products of the similarities to half
    precision: at temperature 0.0075 an error of 1e-3 in a cosine changes its exponential by 13 %.
    """
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Context of an operator's own matrix products: no autocast, and float32 is float32.

    `torch.set_float32_matmul_precision` would otherwise have them round to TF32 on GPUs, or to bfloat16 on CPUs that
    multiply it: on maps with a mean an error of 2e-3 in a loss at temperature 0.1.
    """
    cpu: Any = torch.backends.mkldnn
    places: list[Any] = [torch.backends.cuda.matmul, getattr(cpu, "matmul", None)]
    if not all(hasattr(place, "fp32_precision") for place in places):  # torch before 2.9
        whole = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with autocast_disabled(device):
                yield
        finally:
            torch.set_float32_matmul_precision(whole)
        return
    # Not through the function, which refuses where a caller has set one of these by itself.
    callers = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        with autocast_disabled(device):
            yield
    finally:
        for place, precision in zip(places, callers, strict=True):
            place.fp32_precision = precision
