"""Which layers are students, and which one is the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from framer.errors import ConfigError
from framer.features.errors import UnsupportedModelError

Students: TypeAlias = Literal["all"] | int | float | Sequence[int]
"""All; every k-th, the first one first; the one at a fraction of the depth; or their numbers."""
Teacher: TypeAlias = Literal["last", "ema"] | int | float
"""The last layer; that of the weights' average; a number; or a fraction of the depth."""


class Selection(NamedTuple):
    """Numbers of layers, counted from 0."""

    students: tuple[int, ...]
    teacher: int


def select_layers(
    names: Sequence[str], students: Students, teacher: Teacher, *, fewest: int = 2, own_pass: bool = False
) -> Selection:
    """Chooses among a model's layers.

    Args:
        names: The layers' names, in the order of the forward pass.
        students: ``"all"`` before the teacher; every k-th of them, the first one first; a fraction of the depth, see
            :func:`layer_at`; or their numbers.
        teacher: ``"last"``, the last layer; its number; a fraction of the depth; or ``"ema"``, the last layer of the
            weights' average.
        fewest: Students that there must be: FRAMER needs two, so that each has another one as its random-layer
            negative.
        own_pass: Whether the teacher's feature comes from a forward pass of its own, as with ``"ema"``: its layer may
            then be a student too.

    Raises:
        UnsupportedModelError: The model has too few layers for the students and a teacher.
        ConfigError: A number is out of range or given twice, a student is the teacher, or fewer students than needed
            are left.
    """
    count = len(names)
    if count < fewest + 1:
        raise UnsupportedModelError(
            f"the model has {count} blocks; FRAMER needs {fewest + 1} or more: {fewest} to learn, and the teacher."
        )
    if isinstance(teacher, str):
        last = count - 1
    else:
        last = layer_at(teacher, count) if isinstance(teacher, float) else teacher
    if not 0 <= last < count:
        raise ConfigError(f"framer.teacher: {teacher} is not a layer; {_described(names)}")
    chosen = _students(names, students, end=last)
    if last in chosen and teacher != "ema" and not own_pass:
        raise ConfigError(f"framer.students: {last} ({names[last]}) is the teacher and cannot be a student")
    if len(chosen) < fewest:
        negatives = ", so that each has another one as its random-layer negative" if fewest > 1 else ""
        raise ConfigError(
            f"framer.students: {students} with teacher {teacher} leaves {len(chosen)} students; {fewest} or more are "
            f"needed{negatives}; {_described(names)}"
        )
    return Selection(chosen, last)


def select_students(names: Sequence[str], students: Students) -> tuple[int, ...]:
    """Chooses students where no layer teaches: any layer can be one.

    Args:
        names: As in :func:`select_layers`.
        students: As there.

    Raises:
        ConfigError: A number is out of range or given twice.
    """
    return _students(names, students, end=len(names))


def layer_at(fraction: float, count: int) -> int:
    """Number of the layer with which that part of the depth is done: of 24 layers, 0.33 is the 8th, number 7.

    Args:
        fraction: Between 0 and 1.
        count: How many layers there are.
    """
    return max(1, round(fraction * count)) - 1


def _students(names: Sequence[str], students: Students, *, end: int) -> tuple[int, ...]:
    if isinstance(students, float):
        return (layer_at(students, len(names)),)
    if isinstance(students, int | str):
        return tuple(range(0, end, 1 if isinstance(students, str) else students))
    chosen = tuple(sorted(students))
    outside = [number for number in chosen if not 0 <= number < len(names)]
    if outside:
        raise ConfigError(f"framer.students: {outside} are not layers; {_described(names)}")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"framer.students: {list(students)} names a layer twice")
    return chosen


def _described(names: Sequence[str]) -> str:
    return f"the model's layers are 0 ({names[0]}) to {len(names) - 1} ({names[-1]})"
