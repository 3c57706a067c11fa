"""Checks of what callers pass in; every message states what was got."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from framer_kernels.bands import BandSplit
from framer_kernels.types import Backend, BandAssignment, GroupMode, Precision, Representation

FEATURE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_map(name: str, x: object) -> Tensor:
    """A feature map ``[B, C, H, W]`` of a floating dtype, with at least one element.

    Raises:
        TypeError: It is no tensor, or not of a floating dtype.
        ValueError: It has not four dimensions, or no element.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor [B, C, H, W], got {type(x).__name__}")
    if x.dtype not in FEATURE_DTYPES:
        raise TypeError(f"{name} must be floating ({_names(FEATURE_DTYPES)}), got {x.dtype}")
    if x.dim() != 4:
        raise ValueError(f"{name} must have the 4 dimensions [B, C, H, W], got shape {list(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"{name} must have at least one element, got shape {list(x.shape)}")
    return x


def check_like(name: str, x: object, other_name: str, other: Tensor) -> Tensor:
    """A feature map with the shape, dtype and device of another one.

    Args:
        name: What messages call ``x``.
        x: What was passed.
        other_name: What messages call ``other``.
        other: A map that was checked.

    Raises:
        TypeError: As in `check_map`.
        ValueError: As in `check_map`, or the shape, dtype or device differs.
    """
    x = check_map(name, x)
    for what, got, wanted in (
        ("shape", list(x.shape), list(other.shape)),
        ("dtype", x.dtype, other.dtype),
        ("device", x.device, other.device),
    ):
        if got != wanted:
            raise ValueError(f"{name} must have the {what} of {other_name}, got {got} and {wanted} ({other_name})")
    return x


def check_students(students: object, teacher: Tensor) -> Sequence[Tensor]:
    """At least two feature maps, all like the teacher.

    Raises:
        TypeError: They are no sequence, or one of them is no tensor or not of a floating dtype.
        ValueError: There are fewer than two, or one of them is not like the teacher.
    """
    if not isinstance(students, Sequence) or isinstance(students, str):
        raise TypeError(f"students must be a sequence of tensors [B, C, H, W], got {type(students).__name__}")
    if len(students) < 2:
        raise ValueError(
            f"students must hold at least two layers, as each takes another one for its random-layer "
            f"negative, got {len(students)}"
        )
    return [check_like(f"students[{i}]", x, "the teacher", teacher) for i, x in enumerate(students)]


def check_negatives(negatives: object, layers: int) -> Sequence[int]:
    """For every layer the index of another one.

    Raises:
        TypeError: They are no sequence, or one of them is no int.
        ValueError: Their number is not that of the layers, or one is out of range or the layer itself.
    """
    if not isinstance(negatives, Sequence) or isinstance(negatives, str):
        raise TypeError(f"negatives must be a sequence of layer indices, got {type(negatives).__name__}")
    if len(negatives) != layers:
        raise ValueError(
            f"negatives must hold one layer index a student ({layers}), got {len(negatives)}: {list(negatives)}"
        )
    for i, j in enumerate(negatives):
        if isinstance(j, bool) or not isinstance(j, int):
            raise TypeError(f"negatives[{i}] must be an int, got {j!r} ({type(j).__name__})")
        if not 0 <= j < layers:
            raise ValueError(f"negatives[{i}] must be a layer index from 0 to {layers - 1}, got {j}")
        if j == i:
            raise ValueError(f"negatives[{i}] must be another layer than {i} itself, got {j}")
    return negatives


def check_bands(bands: object, *, has_teacher: bool = True) -> BandSplit:
    """A `BandSplit`, and for ``quantile`` a teacher to take the quantile of.

    Raises:
        TypeError: It is no `BandSplit`.
        ValueError: Quantile bands have no teacher.
    """
    if not isinstance(bands, BandSplit):
        raise TypeError(f"bands must be a BandSplit, such as BandSplit.radial(0.25), got {bands!r}")
    if bands.kind == "quantile" and not has_teacher:
        raise ValueError(f"quantile bands are taken from the teacher's spectrum: pass teacher=, got None with {bands}")
    return bands


def check_temperature(temperature: object) -> float:
    """A finite number above zero.

    Raises:
        TypeError: It is no number.
        ValueError: It is infinite, NaN, or not above zero.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"temperature must be a number, got {temperature!r} ({type(temperature).__name__})")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and above 0, got {temperature!r}")
    return float(temperature)


def check_choice(name: str, value: object, allowed: Sequence[str | None]) -> None:
    """One of a few names.

    Args:
        name: What the message calls the value.
        value: What was passed.
        allowed: The names.

    Raises:
        ValueError: The value is none of them.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")


def check_representation(representation: object) -> None:
    """A `Representation`."""
    check_choice("representation", representation, get_args(Representation))


def check_backend(backend: object) -> None:
    """A `Backend`."""
    check_choice("backend", backend, get_args(Backend))


def check_assignment(assignment: object, backend: object) -> None:
    """A `BandAssignment`, and a backend that has it.

    Raises:
        ValueError: It is no `BandAssignment`, or not one that the backend computes.
    """
    check_choice("assignment", assignment, get_args(BandAssignment))
    if assignment != "intra_low" and backend not in ("auto", "reference"):
        raise ValueError(
            f"assignment={assignment!r} is computed by the reference backend alone, got backend={backend!r}; "
            "backend='auto' takes it"
        )


def check_precision(precision: object) -> None:
    """A `Precision`."""
    check_choice("precision", precision, get_args(Precision))


def check_group_mode(group_mode: object) -> None:
    """A `GroupMode`."""
    check_choice("group_mode", group_mode, get_args(GroupMode))


def check_flag(name: str, value: object) -> None:
    """True or False.

    Raises:
        TypeError: It is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _names(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)
