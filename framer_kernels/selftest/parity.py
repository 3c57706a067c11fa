"""Errors of the backends against the definition in float64, forward and gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from framer_kernels.backends import choose_backend, triton_problem
from framer_kernels.bands import BandSplit
from framer_kernels.ops.framer_loss.api import framer_loss
from framer_kernels.types import Backend, Precision

Kind = Literal["forward", "gradient"]

LAYERS = 3
NEGATIVES = [1, 2, 0]
QUICK_SHAPES = [(2, 5, 8, 13), (3, 17, 16, 16)]
SHAPES = [*QUICK_SHAPES, (1, 3, 9, 7), (2, 40, 24, 24), (4, 64, 32, 32), (2, 3, 28, 48), (1, 2, 64, 64)]
OPTIONS: list[dict[str, Any]] = [
    {"bands": BandSplit.radial(0.25), "representation": "complex"},
    {"bands": BandSplit.radial(0.25), "representation": "magnitude"},
    {"bands": BandSplit.radial(0.5), "representation": "complex", "temperature": 0.1, "shared_negatives": True},
    {"bands": BandSplit.radial(0.25), "representation": "magnitude", "temperature": 0.0075, "faw": None, "fam": False},
    {"bands": BandSplit.quantile(0.2), "representation": "magnitude", "shared_negatives": True},
    {"bands": BandSplit.quantile(0.2), "representation": "complex", "faw": "absolute"},
]
EXACT_FLOOR = {torch.float64: 1e-11, torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float16: 3e-6}
PRECISION_FLOOR: dict[Precision, float] = {"ieee": 3e-6, "bf16x3": 2e-5, "tf32": 2e-3}
"""Errors relative to the largest value that are always allowed, for cases in which the definition's own happens to be
smaller; at a temperature T one over T times as much, because T divides every cosine."""
WEAK_BINS = 10
"""Gradients of magnitudes follow the direction of every bin, which in a weak one is known less well than products."""


@dataclass(frozen=True)
class Subject:
    """A backend in a dtype, and how it multiplies."""

    backend: Backend
    dtype: torch.dtype
    precision: Precision = "bf16x3"

    @property
    def name(self) -> str:
        """As the table has it."""
        return f"triton {self.precision}" if self.backend == "triton" else self.backend

    @property
    def floor(self) -> float:
        """Relative error that is always allowed at temperature 1."""
        return PRECISION_FLOOR[self.precision] if self.backend == "triton" else EXACT_FLOOR[self.dtype]


class Comparison(NamedTuple):
    """One error and what it may be, both relative to the largest exact value.

    Attributes:
        kind: Whether of the loss and its parts, or of the gradient.
        case: Shape and options, for people.
        error: Largest difference from the definition in float64.
        budget: Twice the definition's own error in the features' dtype, or what is always allowed where that is more.
    """

    kind: Kind
    case: str
    error: float
    budget: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its budget; NaN is not."""
        return self.error <= self.budget


def subjects(device: torch.device) -> list[Subject]:
    """What there is to test on a device."""
    narrow = [torch.float32, torch.bfloat16]
    found = [Subject("portable", dtype) for dtype in (torch.float64, *narrow)]
    if device.type == "cuda" and triton_problem(device) is None:
        found.append(Subject("triton", torch.float32, "ieee"))
        found.extend(Subject("triton", dtype) for dtype in (*narrow, torch.float16))
    # The definition in its own dtypes is the measure of the others, and exact in float64.
    return [*(Subject("reference", dtype) for dtype in narrow), *found]


def compare(subject: Subject, device: torch.device, *, quick: bool) -> list[Comparison]:
    """All comparisons of a subject; cases that its backend does not compute are left out.

    Args:
        subject: What to test.
        device: Where.
        quick: Whether to take few shapes.
    """
    found: list[Comparison] = []
    for shape, options in itertools.product(QUICK_SHAPES if quick else SHAPES, OPTIONS):
        features = _features(shape, subject.dtype, device)
        if subject.backend == "triton" and not _supported(features[0]):
            continue
        case = f"{list(shape)} {', '.join(f'{key}={_plain(value)}' for key, value in options.items())}"
        exact = _run([x.double() for x in features], "reference", options)
        own = _run(features, "reference", options)
        tested = _run(features, subject.backend, options, precision=subject.precision)
        floor = subject.floor / options.get("temperature", 1.0)
        if options["bands"].kind == "quantile" and subject.dtype != torch.float64:
            # Rounding may move the bin at the quantile, and its conjugate, to the other band.
            floor += 2 / math.prod(shape[1:])
        floors: dict[Kind, float] = {"forward": floor, "gradient": floor}
        if subject.backend == "triton":
            floors["gradient"] *= WEAK_BINS if options["representation"] == "magnitude" else 1
            if subject.dtype != torch.float32:
                # A sum of targets is rounded, added to and rounded again.
                floors["gradient"] += 1.5 * torch.finfo(subject.dtype).eps
        for (kind, allowed), truths, torch_values, values in zip(floors.items(), exact, own, tested, strict=True):
            error, budget = _error(values, truths), max(2 * _error(torch_values, truths), allowed)
            found.append(Comparison(kind, case, error, budget))
    return found


def worst(comparisons: Sequence[Comparison], kind: Kind) -> Comparison | None:
    """The comparison of a kind that comes closest to its budget or exceeds it by most."""

    def excess(each: Comparison) -> float:
        return math.inf if math.isnan(each.error) else each.error / each.budget

    return max((each for each in comparisons if each.kind == kind), key=excess, default=None)


def _features(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(shape, generator=generator, dtype=torch.float64)
    students = [
        0.5 * teacher + torch.randn(shape, generator=generator, dtype=torch.float64) + 0.25 for _ in range(LAYERS)
    ]
    maps = [x.to(device, dtype) for x in (*students, teacher)]
    # Every other channel count is laid out as tokens are.
    return maps if shape[1] % 2 else [x.contiguous(memory_format=torch.channels_last) for x in maps]


def _supported(features: Tensor) -> bool:
    try:
        choose_backend("triton", features)
    except ValueError:
        return False
    return True


def _run(
    features: list[Tensor], backend: Backend, options: dict[str, Any], precision: Precision = "bf16x3"
) -> tuple[list[Tensor], list[Tensor]]:
    *students, teacher = (x.detach() for x in features)
    for x in students:
        x.requires_grad_()
    out = framer_loss(students, teacher, negatives=NEGATIVES, backend=backend, precision=precision, **options)
    upstream = torch.linspace(0.5, 1.5, LAYERS, dtype=out.loss.dtype, device=out.loss.device)
    gradients = torch.autograd.grad((out.loss * upstream).sum(), students)
    return [field.detach() for field in out], list(gradients)


def _error(values: list[Tensor], truths: list[Tensor]) -> float:
    errors = [
        float((value.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30))
        for value, truth in zip(values, truths, strict=True)
    ]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _plain(value: object) -> object:
    return f"{value.kind}({value.value})" if isinstance(value, BandSplit) else value
