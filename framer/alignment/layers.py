"""Which layers a method compares."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from framer.config.distillation import FramerConfig
from framer.features.selection import select_layers, select_students

logger = logging.getLogger(__name__)

LAYERSYNC_LATEST = 0.8
"""Part of the depth beyond which LayerSync finds that layers teach badly."""


class MethodLayers(NamedTuple):
    """Numbers of layers, counted from 0; no teacher where no layer of the model teaches."""

    students: tuple[int, ...]
    teacher: int | None


def method_layers(config: FramerConfig, names: Sequence[str]) -> MethodLayers:
    """The layers that the configured method compares.

    Args:
        config: Method, students and teacher.
        names: The layers' names, in the order of the forward pass.

    Raises:
        UnsupportedModelError: The model has too few layers.
        ConfigError: Students or teacher are not in the model, or leave too few students.
    """
    if config.method in ("repa", "dispersive"):
        return MethodLayers(select_students(names, config.students), None)
    if config.method == "sra":
        return MethodLayers(*select_layers(names, config.students, config.sra.teacher_layer, fewest=1, own_pass=True))
    fewest = 2 if config.method == "framer" else 1
    students, teacher = select_layers(names, config.students, config.teacher, fewest=fewest)
    if config.method == "layersync" and teacher + 1 > LAYERSYNC_LATEST * len(names):
        logger.warning(
            "framer.teacher: %s is among the last fifth of the layers, which LayerSync advises against as teachers",
            names[teacher],
        )
    return MethodLayers(students, teacher)
