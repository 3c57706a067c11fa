"""The alignment losses by the names that ``framer.method`` has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from torch import nn

from framer.alignment.base import Alignment
from framer.alignment.dispersive import Dispersive
from framer.alignment.encoders import ImageEncoder
from framer.alignment.l2 import L2
from framer.alignment.layersync import LayerSync
from framer.alignment.projectors import projectors_of
from framer.alignment.repa import Repa
from framer.alignment.sra import Sra
from framer.config.distillation import FramerConfig
from framer.errors import ConfigError


class Parts(NamedTuple):
    """What an alignment loss is made of."""

    config: FramerConfig
    model: nn.Module
    """The diffusers model itself."""
    students: Sequence[int]
    encoder: ImageEncoder | None


def _repa(parts: Parts) -> Alignment:
    if parts.encoder is None:
        raise ConfigError(
            "method repa: pass its encoder, Framer(..., encoder=framer.alignment.load_encoder(folder)), or a frozen "
            "framer.alignment.ImageEncoder of your own"
        )
    return Repa(projectors_of(parts.model, parts.students), parts.students, parts.encoder, parts.config.repa)


ALIGNMENTS: Final[Mapping[str, Callable[[Parts], Alignment]]] = {
    "l2": lambda parts: L2(),
    "layersync": lambda parts: LayerSync(),
    "sra": lambda parts: Sra(projectors_of(parts.model, parts.students), parts.students),
    "repa": _repa,
    "dispersive": lambda parts: Dispersive(parts.config.dispersive.temperature),
}


def build_alignment(
    config: FramerConfig, model: nn.Module, students: Sequence[int], encoder: ImageEncoder | None = None
) -> Alignment | None:
    """The loss that ``config.method`` names; None for FRAMER's own.

    Args:
        config: The method and its settings.
        model: The diffusers model itself, with projectors where the method has them.
        students: The students' numbers.
        encoder: What REPA's students learn from.

    Raises:
        ConfigError: The model lacks the method's projectors, or ``repa`` its encoder; or another method was given one.
    """
    if encoder is not None and config.method != "repa":
        raise ConfigError(f"an encoder is for method repa; the method is {config.method}")
    make = ALIGNMENTS.get(config.method)
    return None if make is None else make(Parts(config, model, students, encoder))
