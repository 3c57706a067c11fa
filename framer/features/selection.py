"""Which layers are students, and which one is the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from framer.errors import ConfigError
from framer.features.errors import UnsupportedModelError


class Selection(NamedTuple):
    """Numbers of layers, counted from 0; no teacher where no layer teaches."""

    students: tuple[int, ...]
    teacher: int | None


def select_layers(
    names: Sequence[str],
    students: Literal["all"] | int | float | Sequence[int],
    teacher: Literal["last", "ema"] | int | float | None,
    *,
    fewest: int = 2,
    own_pass: bool = False,
) -> Selection:
    """Chooses among a model's layers.

    Args:
        names: The layers' names, in the order of the forward pass.
        students: ``"all"`` before the teacher; every k-th of them, the first one first; a fraction of the depth, see
            :func:`layer_at`; or their numbers.
        teacher: ``"last"``, the last layer; its number; a fraction of the depth; ``"ema"``, the last layer of the
            weights' average; or None: no layer teaches.
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
    layers = f"the model's layers are 0 ({names[0]}) to {count - 1} ({names[-1]})"
    taught = _teacher(teacher, count)
    if taught is not None and not 0 <= taught < count:
        raise ConfigError(f"framer.teacher: {teacher} is not a layer; {layers}")
    end = count if taught is None else taught
    if isinstance(students, float):
        chosen: tuple[int, ...] = (layer_at(students, count),)
    elif students == "all" or isinstance(students, int):
        chosen = tuple(range(0, end, 1 if students == "all" else students))
    else:
        chosen = tuple(sorted(students))
        outside = [number for number in chosen if not 0 <= number < count]
        if outside:
            raise ConfigError(f"framer.students: {outside} are not layers; {layers}")
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"framer.students: {list(students)} names a layer twice")
    if taught in chosen and teacher != "ema" and not own_pass:
        raise ConfigError(f"framer.students: {taught} ({names[taught]}) is the teacher and cannot be a student")
    if len(chosen) < fewest:
        negatives = ", so that each has another one as its random-layer negative" if fewest > 1 else ""
        raise ConfigError(
            f"framer.students: {students} with teacher {teacher} leaves {len(chosen)} students; {fewest} or more are "
            f"needed{negatives}; {layers}"
        )
    return Selection(chosen, taught)


def layer_at(fraction: float, count: int) -> int:
    """Number of the layer with which that part of the depth is done: of 24 layers, 0.33 is the 8th, number 7.

    Args:
        fraction: Between 0 and 1.
        count: How many layers there are.
    """
    return max(1, round(fraction * count)) - 1


def _teacher(teacher: Literal["last", "ema"] | int | float | None, count: int) -> int | None:
    if isinstance(teacher, str):
        return count - 1
    return layer_at(teacher, count) if isinstance(teacher, float) else teacher
