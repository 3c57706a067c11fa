"""Which layers are students, and which one is the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from framer.errors import ConfigError
from framer.features.errors import UnsupportedModelError


class Selection(NamedTuple):
    """Numbers of layers, counted from 0."""

    students: tuple[int, ...]
    teacher: int


def select_layers(
    names: Sequence[str], students: Literal["all"] | int | Sequence[int], teacher: Literal["last", "ema"] | int
) -> Selection:
    """Chooses among a model's layers.

    Args:
        names: The layers' names, in the order of the forward pass.
        students: ``"all"`` before the teacher; every k-th of them, the first one first; or their numbers.
        teacher: ``"last"``, the last layer; its number; or ``"ema"``, the last layer of the weights' average.

    Raises:
        UnsupportedModelError: The model has too few layers for two students and a teacher.
        ConfigError: A number is out of range or given twice, a student is the teacher, or fewer than two students are
            left.
    """
    count = len(names)
    if count < 3:
        raise UnsupportedModelError(
            f"the model has {count} blocks; FRAMER needs 3 or more, 2 students and the teacher."
        )
    layers = f"the model's layers are 0 ({names[0]}) to {count - 1} ({names[-1]})"
    last = count - 1 if isinstance(teacher, str) else teacher
    if not 0 <= last < count:
        raise ConfigError(f"framer.teacher: {teacher} is not a layer; {layers}")
    if students == "all" or isinstance(students, int):
        chosen = tuple(range(0, last, 1 if students == "all" else students))
    else:
        chosen = tuple(sorted(students))
        outside = [number for number in chosen if not 0 <= number < count]
        if outside:
            raise ConfigError(f"framer.students: {outside} are not layers; {layers}")
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"framer.students: {list(students)} names a layer twice")
        if last in chosen and teacher != "ema":
            raise ConfigError(f"framer.students: {last} ({names[last]}) is the teacher and cannot be a student")
    if len(chosen) < 2:
        raise ConfigError(
            f"framer.students: {students} with teacher {teacher} leaves {len(chosen)} students; 2 or more are needed, "
            f"so that each has another one as its random-layer negative; {layers}"
        )
    return Selection(chosen, last)
