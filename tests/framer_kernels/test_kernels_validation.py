from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import NEGATIVES, small_features

from framer_kernels import (
    BandSplit,
    band_energy,
    band_similarity,
    framer_loss,
    inter_contrastive_loss,
    intra_contrastive_loss,
)

FEATURES = small_features()
STUDENTS, TEACHER = FEATURES[:4], FEATURES[4]


def replaced(index: int, value: Any) -> list[Any]:
    return [value if i == index else x for i, x in enumerate(STUDENTS)]


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no students": ({"students": [], "negatives": []}, ValueError, r"at least two layers.* got 0"),
    "one student": ({"students": STUDENTS[:1], "negatives": [0]}, ValueError, r"at least two layers.* got 1"),
    "stacked students": (
        {"students": torch.stack(STUDENTS)},
        TypeError,
        r"students must be a sequence of tensors .* got Tensor",
    ),
    "student is no tensor": (
        {"students": replaced(2, [1.0])},
        TypeError,
        r"students\[2\] must be a tensor \[B, C, H, W\], got list",
    ),
    "student of another shape": (
        {"students": replaced(1, TEACHER[:, :1])},
        ValueError,
        r"students\[1\] must have the shape of the teacher, got \[2, 1, 5, 6\] and \[2, 2, 5, 6\]",
    ),
    "student of another dtype": (
        {"students": replaced(3, TEACHER.float())},
        ValueError,
        r"students\[3\] must have the dtype of the teacher, got torch.float32 and torch.float64",
    ),
    "student on another device": (
        {"students": replaced(0, TEACHER.to("meta"))},
        ValueError,
        r"students\[0\] must have the device of the teacher, got meta and cpu",
    ),
    "tokens instead of maps": (
        {"teacher": TEACHER.flatten(2)},
        ValueError,
        r"teacher must have the 4 dimensions \[B, C, H, W\], got shape \[2, 2, 30\]",
    ),
    "empty batch": ({"teacher": TEACHER[:0]}, ValueError, r"at least one element, got shape \[0, 2, 5, 6\]"),
    "integer features": ({"teacher": TEACHER.long()}, TypeError, r"teacher must be floating .* torch.int64"),
    "complex features": (
        {"teacher": TEACHER.cfloat()},
        TypeError,
        r"teacher must be floating .* torch.complex64",
    ),
    "teacher missing": ({"teacher": None}, TypeError, r"teacher must be a tensor .* got NoneType"),
    "too few negatives": (
        {"negatives": [1, 0]},
        ValueError,
        r"one layer index a student \(4\), got 2: \[1, 0\]",
    ),
    "negative out of range": (
        {"negatives": [1, 2, 4, 0]},
        ValueError,
        r"negatives\[2\] must be a layer index from 0 to 3, got 4",
    ),
    "negative from the end": ({"negatives": [1, 2, -1, 0]}, ValueError, r"negatives\[2\] .* 0 to 3, got -1"),
    "own negative": ({"negatives": [1, 1, 3, 0]}, ValueError, r"negatives\[1\] must be another layer than 1"),
    "fractional negative": (
        {"negatives": [1, 2, 3, 0.0]},
        TypeError,
        r"negatives\[3\] must be an int, got 0.0",
    ),
    "bool negative": (
        {"negatives": [1, 2, 3, False]},
        TypeError,
        r"negatives\[3\] must be an int, got False",
    ),
    "negatives as text": ({"negatives": "1230"}, TypeError, r"negatives must be a sequence .* got str"),
    "bands as a number": ({"bands": 0.25}, TypeError, r"bands must be a BandSplit, .* got 0.25"),
    "representation": (
        {"representation": "phase"},
        ValueError,
        r"representation must be one of \['complex', 'magnitude'\], got 'phase'",
    ),
    "zero temperature": ({"temperature": 0}, ValueError, r"temperature must be finite and above 0, got 0"),
    "negative temperature": ({"temperature": -1.0}, ValueError, r"above 0, got -1.0"),
    "infinite temperature": ({"temperature": float("inf")}, ValueError, r"above 0, got inf"),
    "nan temperature": ({"temperature": float("nan")}, ValueError, r"above 0, got nan"),
    "temperature as text": (
        {"temperature": "1"},
        TypeError,
        r"temperature must be a number, got '1' \(str\)",
    ),
    "faw": (
        {"faw": "relative"},
        ValueError,
        r"faw must be one of \['relative_student', 'relative_teacher', 'absolute', None\], got 'relative'",
    ),
    "fam": ({"fam": "no"}, TypeError, r"fam must be True or False, got 'no'"),
    "assignment": (
        {"assignment": "swapped"},
        ValueError,
        r"assignment must be one of \['intra_low', 'intra_high', 'intra_both', 'inter_both'\], got 'swapped'",
    ),
    "shared_negatives": (
        {"shared_negatives": 1},
        TypeError,
        r"shared_negatives must be True or False, got 1",
    ),
    "backend": (
        {"backend": "cuda"},
        ValueError,
        r"backend must be one of \['auto', 'triton', 'portable', 'reference'\], got 'cuda'",
    ),
    "group": ({"group": "nccl"}, TypeError, r"group must be a torch.distributed.ProcessGroup .* got 'nccl'"),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_framer_loss_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"students": STUDENTS, "teacher": TEACHER, "negatives": NEGATIVES, **changes}

    with pytest.raises(error, match=message):
        framer_loss(**arguments)


def test_unchanged_arguments_are_accepted() -> None:
    # What every case above changes one thing of.
    out = framer_loss(tuple(STUDENTS), TEACHER, negatives=tuple(NEGATIVES), temperature=1, backend="reference")

    assert torch.equal(out.loss, framer_loss(STUDENTS, TEACHER, negatives=NEGATIVES, backend="reference").loss)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "band_energy": lambda x=TEACHER, **kw: band_energy(x, **kw),
    "band_similarity": lambda x=TEACHER, **kw: band_similarity(x, TEACHER, **kw),
    "intra": lambda x=TEACHER, **kw: intra_contrastive_loss(x, TEACHER, STUDENTS[0], **kw),
    "inter": lambda x=TEACHER, **kw: inter_contrastive_loss(x, TEACHER, STUDENTS[0], **kw),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_operations_refuse_what_the_loss_refuses(operation: Callable[..., Any]) -> None:
    operation()
    with pytest.raises(TypeError, match="must be a tensor"):
        operation(x=3)
    with pytest.raises(ValueError, match="4 dimensions"):
        operation(x=TEACHER[0])
    with pytest.raises(TypeError, match="bands must be a BandSplit"):
        operation(bands=None)
    with pytest.raises(ValueError, match="backend must be one of"):
        operation(backend="cuda")


@pytest.mark.parametrize("name", ["band_similarity", "intra", "inter"])
def test_operations_on_two_maps_refuse(name: str) -> None:
    with pytest.raises(ValueError, match=r"must have the shape of .* got"):
        OPERATIONS[name](x=TEACHER[:1])
    with pytest.raises(ValueError, match="representation must be one of"):
        OPERATIONS[name](representation="real")


@pytest.mark.parametrize("name", ["intra", "inter"])
def test_contrastive_losses_refuse(name: str) -> None:
    with pytest.raises(ValueError, match="temperature must be finite and above 0"):
        OPERATIONS[name](temperature=0.0)


def test_inter_refuses() -> None:
    with pytest.raises(TypeError, match="shared_negatives must be True or False"):
        inter_contrastive_loss(TEACHER, TEACHER, STUDENTS[0], shared_negatives="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative must have the shape of the teacher"):
        inter_contrastive_loss(TEACHER, TEACHER, STUDENTS[0][:1])


@pytest.mark.parametrize("name", ["band_energy", "band_similarity"])
def test_quantile_bands_need_a_teacher(name: str) -> None:
    with pytest.raises(ValueError, match=r"pass teacher=, got None with BandSplit\(kind='quantile', value=0.2\)"):
        OPERATIONS[name](bands=BandSplit.quantile(0.2))
    with pytest.raises(ValueError, match="teacher must have the shape of x"):
        OPERATIONS[name](bands=BandSplit.quantile(0.2), teacher=TEACHER[:1])
    OPERATIONS[name](bands=BandSplit.quantile(0.2), teacher=TEACHER)
