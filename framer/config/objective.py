"""What the model is trained on beside FRAMER."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from framer.config.base import ConfigSection
from framer.config.types import Fraction, NonNegativeFloat, PositiveFloat

NUM_TRAIN_TIMESTEPS: Final = 1000
"""Timesteps of every objective's schedule, as in all of Stable Diffusion."""

ObjectiveType: TypeAlias = Literal["flow_matching", "diffusion", "one_step"]

FIELDS: Final[Mapping[ObjectiveType, tuple[str, ...]]] = {
    "flow_matching": ("prediction_type", "target", "logit_mean", "logit_std", "timestep_shift"),
    "diffusion": ("prediction_type", "zero_terminal_snr", "min_snr_gamma"),
    "one_step": (
        "timestep",
        "space",
        "l2_weight",
        "lpips_weight",
        "csd_weight",
        "csd_guidance",
        "csd_base",
        "csd_range",
    ),
}
"""The settings of each type, beside ``type``."""

# What a model's output can be; the first is the default.
_PREDICTIONS: Final[Mapping[ObjectiveType, tuple[str, ...]]] = {
    "flow_matching": ("velocity", "sample"),
    "diffusion": ("epsilon", "v_prediction", "sample"),
}


_SAMPLING: Final = ("prediction_type", "timestep_shift", "zero_terminal_snr", "timestep")


class ObjectiveConfig(ConfigSection):
    """Flow matching, diffusion or restoration in one step; settings of another type than the chosen one are refused."""

    type: ObjectiveType = "flow_matching"
    """``flow_matching``, as Stable Diffusion 3 trains it (arXiv 2403.03206); ``diffusion``, with the 1000-step noise
    schedule of Stable Diffusion 1 and 2; ``one_step``, from the low-resolution image in one step, as PiSA-SR (arXiv
    2412.03017)."""
    prediction_type: Literal["velocity", "sample", "epsilon", "v_prediction"] = "velocity"
    """What the model's output is. Of ``flow_matching``: ``velocity``, noise minus clean sample, as SD3; or ``sample``,
    the clean sample. Of ``diffusion``: ``epsilon``, the noise (the default then); ``v_prediction``; or ``sample``."""
    target: Literal["velocity", "x0"] = "velocity"
    """``flow_matching``: where the squared error is measured, on the ``velocity``, or on the clean sample ``x0``."""
    logit_mean: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """``flow_matching``: mean of logit(sigma) before the shift."""
    logit_std: PositiveFloat = 1.0
    """``flow_matching``: standard deviation of logit(sigma)."""
    timestep_shift: PositiveFloat = 3.0
    """``flow_matching``: SD3's resolution shift s, sigma -> s * sigma / (1 + (s - 1) * sigma), in training and
    inference."""
    zero_terminal_snr: bool = False
    """``diffusion``: scale the schedule so that its last timestep is noise alone (arXiv 2305.08891); not for
    ``epsilon``."""
    min_snr_gamma: PositiveFloat | None = None
    """``diffusion``: weigh timesteps by their signal-to-noise ratio cut at this value (Min-SNR, arXiv 2303.09556, which
    takes 5); null weighs all alike."""
    timestep: Annotated[int, Field(ge=0, lt=NUM_TRAIN_TIMESTEPS)] = 1
    """``one_step``: the timestep that the model is told, of 0 to 999."""
    space: Literal["image", "latent"] = "image"
    """``one_step``: where the squared error is measured, on the decoded ``image`` or on its ``latent``."""
    l2_weight: NonNegativeFloat = 1.0
    """``one_step``: weight of the mean squared error; a loss of weight 0 is not computed."""
    lpips_weight: NonNegativeFloat = 0.0
    """``one_step``: weight of LPIPS with VGG features; 2 in PiSA-SR's second stage."""
    csd_weight: NonNegativeFloat = 0.0
    """``one_step``: weight of classifier score distillation (arXiv 2310.19415); 1 in PiSA-SR's second stage, whose
    gradient is then the same: twice the score's over the number of latents."""
    csd_guidance: PositiveFloat = 7.5
    """``one_step``: guidance scale of the model that score distillation asks."""
    csd_base: str | None = None
    """``one_step``: the diffusers folder of the frozen model that score distillation asks, one that predicts noise and
    takes latents alone, such as the U-Net of SD 2.1-base; needed where ``csd_weight`` is not 0."""
    csd_range: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.02, 0.5]
    """``one_step``: first and last part of the schedule that score distillation draws its timesteps from."""

    @model_validator(mode="before")
    @classmethod
    def _fill_prediction_type(cls, data: object) -> object:
        """Adds the prediction type that is usual for diffusion where none is given."""
        if isinstance(data, Mapping) and data.get("type") == "diffusion":
            return {"prediction_type": _PREDICTIONS["diffusion"][0], **data}
        return data

    @model_validator(mode="after")
    def _settings_are_those_of_the_type(self) -> ObjectiveConfig:
        own = FIELDS[self.type]
        for name in type(self).model_fields:
            if name in self.model_fields_set and name != "type" and name not in own:
                types = " and ".join(kind for kind, fields in FIELDS.items() if name in fields)
                raise ValueError(
                    f"{name} is a setting of type {types}, but type is {self.type}; leave it out ({self.type} has "
                    f"{', '.join(own)})"
                )
        allowed = _PREDICTIONS.get(self.type)
        if allowed is not None and self.prediction_type not in allowed:
            raise ValueError(
                f"prediction_type {self.prediction_type} does not go with type {self.type}; take one of "
                f"{', '.join(allowed)}"
            )
        return self

    @model_validator(mode="after")
    def _settings_fit_together(self) -> ObjectiveConfig:
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "zero_terminal_snr with prediction_type epsilon: noise alone tells nothing of the clean sample; take "
                "v_prediction or sample"
            )
        if self.zero_terminal_snr and self.min_snr_gamma is not None:
            raise ValueError(
                f"min_snr_gamma {self.min_snr_gamma} with zero_terminal_snr: the last timestep, where sampling begins, "
                "would have weight 0 and never be trained; drop one of the two"
            )
        if self.type == "one_step" and not (self.l2_weight or self.lpips_weight or self.csd_weight):
            raise ValueError("l2_weight, lpips_weight and csd_weight are all 0: there is nothing to train on")
        first, last = self.csd_timesteps
        if first >= last:
            raise ValueError(
                f"csd_range {self.csd_range}: no timestep is within; the first part must be below the last, as in "
                "[0.02, 0.5]"
            )
        return self

    @model_serializer(mode="wrap")
    def _own_settings_alone(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves the settings of other types out: they would be refused when read again."""
        own = ("type", *FIELDS[self.type])
        return {name: value for name, value in serialize(self).items() if name in own}

    def sampling_settings(self) -> dict[str, str | int | float]:
        """The settings that sampling depends on, by name; without ``type``."""
        return {name: getattr(self, name) for name in FIELDS[self.type] if name in _SAMPLING}

    @property
    def csd_timesteps(self) -> tuple[int, int]:
        """First timestep of score distillation, and the one after its last."""
        return round(NUM_TRAIN_TIMESTEPS * self.csd_range[0]), round(NUM_TRAIN_TIMESTEPS * self.csd_range[1])

    @property
    def feature_prediction(self) -> Literal["velocity", "sample"]:
        """The model's output as FRAMER's feature spaces ``velocity`` and ``x0`` know it, those of flow matching."""
        return "sample" if self.prediction_type == "sample" else "velocity"
