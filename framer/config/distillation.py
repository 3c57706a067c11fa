"""Settings of the FRAMER loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from framer.config.alignment import (
    FIELDS_OF,
    METHOD_DEFAULTS,
    SECTIONS,
    DepthFraction,
    DispersiveConfig,
    Method,
    RepaConfig,
    SraConfig,
)
from framer.config.base import ConfigSection
from framer.config.types import NonNegativeInt
from framer_kernels.types import Backend, BandAssignment, BandKind, FawMode, GroupMode, Precision, Representation

_RELEASED: Final[Mapping[str, object]] = {
    "weight": 0.1,
    "bands": "quantile",
    "representation": "magnitude",
    "reduce": "mean",
    "shared_negatives": True,
}
# The paper's values are the fields' own defaults.
_PRESETS: Final[Mapping[str, Mapping[str, object]]] = {"paper": {}, "released": _RELEASED}


class FramerConfig(ConfigSection):
    """What the alignment loss compares, how it weighs it, and how it draws its negatives.

    The preset supplies every field that is not given, and a given field always wins; the object that results
    holds concrete values only, so ``FramerConfig(**config.model_dump())`` equals ``config``.

    | preset     | bands         | representation | temperature | reduce | weight | shared negatives |
    |------------|---------------|----------------|-------------|--------|--------|------------------|
    | `paper`    | radial 0.25   | complex        | 1           | sum    | 1.0    | no               |
    | `released` | quantile 0.2  | magnitude      | 1           | mean   | 0.1    | yes              |

    The released script's arithmetic needs clean latents as features, although its docstring speaks of hidden states, so
    parity with it takes ``feature_space: x0`` beside the preset.

    Another ``method`` puts another alignment loss in FRAMER's place (``docs/alignment.md``) and has defaults of its own
    for ``students``, ``teacher`` and ``weight``. A setting that has no effect on it is refused. A method's own section
    alone, such as ``repa``, chooses the method.

    Source: Choi et al., FRAMER, arXiv 2512.01390; ``released`` follows the authors' script where it differs.
    """

    enabled: bool = True
    """Whether training adds the FRAMER loss at all."""

    preset: Literal["paper", "released"] = "paper"
    """Where the values of the fields not given come from."""

    method: Method = "framer"
    """Which loss aligns the layers: `framer`; `l2`, the mean squared distance to the teacher; `layersync`, `sra`,
    `repa` or `dispersive`, each after its paper."""

    feature_space: Literal["hidden", "x0", "velocity"] = "hidden"
    """What a feature map is: `hidden`, a block's output tokens; `velocity`, these tokens through the model's
    own output head; `x0`, the clean latent that this velocity implies."""

    students: (
        Literal["all"]
        | Annotated[int, Field(ge=1)]
        | DepthFraction
        | Annotated[list[NonNegativeInt], Field(min_length=1)]
    ) = "all"
    """Which layers learn: `all` before the teacher; a number k: every k-th of them; a fraction of the depth: the one
    layer there; or a list of layers, counted from 0."""

    teacher: Literal["last", "ema"] | NonNegativeInt | DepthFraction = "last"
    """Whose feature teaches: the `last` layer's; a layer's by its number or a fraction of the depth; or `ema`, the last
    layer's of the model with its averaged weights on the same input (`training.ema`), which takes one more forward
    pass."""

    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Factor of the reduced loss beside the noise loss; 0 or more."""

    bands: BandKind = "radial"
    """How frequencies are split: `radial`, low within a circle about zero frequency; `quantile`, low where
    the teacher's amplitude is below a quantile. The latter is kept for parity with the released script: on
    photographs these bins are the highest frequencies, so its bands are inverted."""

    cutoff: float = Field(default=0.25, ge=0.0, lt=math.sqrt(2.0), allow_inf_nan=False)
    """Radius of the low band where `bands` is `radial`, from 0, the mean alone, to below sqrt(2), the corner
    of the spectrum; 1.0 is Nyquist along an axis."""

    quantile: float = Field(default=0.2, gt=0.0, lt=1.0, allow_inf_nan=False)
    """Fraction of the bins that are low where `bands` is `quantile`; between 0 and 1."""

    representation: Representation = "complex"
    """What the cosine similarity compares: the complex spectrum, or its magnitude without phase."""

    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """Temperature of the contrastive losses; above 0."""

    reduce: Literal["sum", "mean"] = "sum"
    """How the students' losses become one."""

    shared_negatives: bool = False
    """Whether the random-layer features of the other images are negatives in InterCL too."""

    faw: FawMode | None = "relative_student"
    """Frequency-based adaptive weight: what the difference of the student's and the teacher's band energy is
    measured against; null turns the weight off."""

    fam: bool = True
    """Whether frequency-based alignment modulation scales each band by the student's similarity to the
    teacher."""

    assignment: BandAssignment = "intra_low"
    """Which band has which loss: `intra_low`, IntraCL the low and InterCL the high one, as FRAMER; `intra_high`, the
    other way round; `intra_both` and `inter_both`, one loss in both. All but the first are for ablations, and computed
    by the `reference` backend."""

    negatives: Literal["cycle", "independent", "fixed"] = "cycle"
    """How each layer's random-layer negative is drawn: `cycle`, its successor in one random cyclic order of
    all layers; `independent`, any other layer. Uniform over the other layers either way. `fixed`: always
    the next layer in depth, for ablations."""

    in_batch_negatives_across_ranks: bool = True
    """Whether the other images, in InterCL or in the loss of `dispersive`, are those of every rank, or of the own rank
    alone."""

    seed: int = Field(default=0, ge=0)
    """Seed of the random-layer negatives, the same on every rank; 0 or more."""

    group_mode: GroupMode = "gather"
    """How other ranks' features come: `gather`, all at once; `ring`, rank by rank in memory that does not grow with
    their number."""

    backend: Backend = "auto"
    """Implementation of the loss: `auto`, the fastest that the machine has for it; `triton`, fused kernels; `portable`,
    plain torch in chunks; `reference`, the definition, slow and sparing of nothing."""

    precision: Precision = "bf16x3"
    """How the `triton` backend multiplies float32 matrices."""

    sra: SraConfig = SraConfig()
    """Settings of method `sra`."""

    repa: RepaConfig = RepaConfig()
    """Settings of method `repa`."""

    dispersive: DispersiveConfig = DispersiveConfig()
    """Settings of method `dispersive`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset_and_method(cls, data: object) -> object:
        """Adds the preset's and the method's values for the fields that are not given."""
        if not isinstance(data, Mapping):
            return data
        method = chosen_method(data)
        data = {"method": method, **data}
        preset = data.get("preset", "paper")
        of_preset = _PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        of_method = METHOD_DEFAULTS.get(method, {}) if isinstance(method, str) else {}
        return {**of_preset, **of_method, **data}

    @model_validator(mode="after")
    def _settings_suit_the_method(self) -> FramerConfig:
        if self.method != "framer" and self.preset != "paper":
            raise ValueError(f"preset {self.preset} is one of method framer, got method {self.method}: leave it out")
        used = FIELDS_OF[self.method]
        unused = [
            name
            for name, field in type(self).model_fields.items()
            if name not in used and getattr(self, name) != field.default
        ]
        if unused:
            values = ", ".join(f"{name} {_shown(getattr(self, name))}" for name in unused)
            raise ValueError(
                f"settings without effect on method {self.method}: {values}; leave them out, or choose another method"
            )
        if self.assignment != "intra_low" and self.backend not in ("auto", "reference"):
            raise ValueError(
                f"assignment {self.assignment} is computed by the reference backend alone, got backend {self.backend}; "
                "leave it at auto"
            )
        if self.method == "sra" and self.teacher != "ema":
            raise ValueError(
                f"method sra learns from the averaged weights: teacher must be ema, got {self.teacher}; sra."
                "teacher_layer chooses their layer"
            )
        return self


def chosen_method(data: Mapping[str, object]) -> object:
    """The method that a section of settings names, or whose own section alone it has."""
    given = [section for section in SECTIONS if data.get(section) is not None]
    return data.get("method", given[0] if len(given) == 1 else "framer")


def _shown(value: object) -> object:
    """A value in a message; of a section, the keys that were changed."""
    return value.model_dump(exclude_defaults=True) if isinstance(value, ConfigSection) else value
