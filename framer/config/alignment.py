"""Settings of the alignment losses other than FRAMER's, and which settings each of them has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field

from framer.config.base import ConfigSection
from framer.config.types import Fraction, NonEmptyText, NonNegativeInt, PositiveFloat, PositiveInt

Method: TypeAlias = Literal["framer", "l2", "layersync", "sra", "repa", "dispersive"]

DepthFraction: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
"""The layer after this part of the depth: 0.33 is the 8th of 24."""


class SraConfig(ConfigSection):
    """SRA (arXiv 2505.02831): a layer at more noise learns from a later layer of the averaged weights at less noise."""

    teacher_layer: NonNegativeInt | DepthFraction = 0.7
    """Layer of the averaged weights: its number, or a fraction of the depth."""
    noise_gap: Fraction = 0.2
    """Largest difference of the noise levels sigma: the teacher's is lower by a uniform draw from 0 to this, and no
    lower than 0."""
    projector_width: PositiveInt | None = None
    """Hidden channels of the projector; null: twice the layer's."""


class RepaConfig(ConfigSection):
    """REPA (arXiv 2410.06940): a layer learns from a frozen encoder's features of the clean image."""

    encoder: NonEmptyText | None = None
    """Folder of a vision model of transformers, such as DINOv2; null where it is given in Python."""
    projector: Literal["mlp", "conv"] = "mlp"
    """``mlp``: three linear layers on each token, as REPA; ``conv``: one 3x3 convolution, as iREPA."""
    projector_width: PositiveInt | None = None
    """Hidden channels of the ``mlp``; null: twice the layer's."""
    spatial_norm: bool = False
    """Whether the encoder's features lose each channel's mean over the image and are divided by its deviation, as in
    iREPA."""


class DispersiveConfig(ConfigSection):
    """Dispersive loss (arXiv 2506.09027): a layer's features of different images move apart."""

    temperature: PositiveFloat = 0.5
    """What squared distances are divided by."""


METHOD_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = {
    "framer": {},
    "l2": {},
    "layersync": {"students": 0.33, "teacher": 0.67, "weight": 0.2},
    "sra": {"students": 0.3, "teacher": "ema", "weight": 0.2},
    "repa": {"students": 0.3, "weight": 0.5},
    "dispersive": {"students": 0.25, "weight": 0.5},
}
"""What a method sets where it is not given; the other fields have one default for all."""

SECTIONS: Final = ("sra", "repa", "dispersive")
"""Settings of one method, under its name."""

_EVERY_METHOD: Final = frozenset({"enabled", "preset", "method", "students", "weight", "reduce", "seed"})
_OF_FRAMER: Final = frozenset(
    {
        "feature_space",
        "teacher",
        "bands",
        "cutoff",
        "quantile",
        "representation",
        "temperature",
        "shared_negatives",
        "faw",
        "fam",
        "assignment",
        "negatives",
        "in_batch_negatives_across_ranks",
        "group_mode",
        "backend",
        "precision",
    }
)
FIELDS_OF: Final[Mapping[str, frozenset[str]]] = {
    "framer": _EVERY_METHOD | _OF_FRAMER,
    "l2": _EVERY_METHOD | {"feature_space", "teacher"},
    "layersync": _EVERY_METHOD | {"teacher"},
    "sra": _EVERY_METHOD | {"teacher", "sra"},
    "repa": _EVERY_METHOD | {"repa"},
    "dispersive": _EVERY_METHOD | {"in_batch_negatives_across_ranks", "dispersive"},
}
"""The settings that have an effect on a method."""
