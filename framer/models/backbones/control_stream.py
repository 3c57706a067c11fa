"""Stable Diffusion 3 and 3.5, the low-resolution latent as a second stream of image tokens (DiT4SR)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from framer.config.model import ModelConfig
from framer.errors import ConfigError
from framer.models.backbones.base import InputChannels
from framer.models.backbones.sd3 import SD3Backbone

if TYPE_CHECKING:
    from diffusers import ModelMixin

_ADDED = re.compile(r"(?P<block>transformer_blocks\.\d+\.)control_(?P<module>attn2?|conv)\.(?P<rest>.+)")


class ControlStreamBackbone(SD3Backbone):
    """``SD3ControlStreamTransformer2DModel``, or an SD3 that is given the stream."""

    class_name = "SD3ControlStreamTransformer2DModel"
    condition_joins_input = False
    condition_like_latents = True
    drawn_by_name = True

    @property
    def starts_from(self) -> tuple[str, ...]:
        """A model with the stream, or SD3's."""
        return (self.class_name, SD3Backbone.class_name)

    @property
    def model_class(self) -> type[ModelMixin]:
        """The class itself."""
        from framer.models.control_stream import SD3ControlStreamTransformer2DModel

        cls: type[ModelMixin] = SD3ControlStreamTransformer2DModel
        return cls

    def settings(self, config: ModelConfig, channels: InputChannels) -> Mapping[str, Any]:
        """Arguments of the class for ``model.architecture``."""
        return {**super().settings(config, channels), "variant": config.control_variant}

    def adopt(self, model: ModelMixin, config: ModelConfig, *, seed: int) -> ModelMixin:
        """Adds the stream to SD3."""
        from framer.models.control_stream import from_sd3

        if isinstance(model, self.model_class):
            _check_variant(model.config.variant, config)
            return model
        return from_sd3(model, variant=config.control_variant)

    def folder_settings(self, settings: Mapping[str, Any], config: ModelConfig) -> Mapping[str, Any]:
        """With the configured variant, where the folder is SD3's."""
        if settings.get("_class_name") == self.class_name:
            _check_variant(str(settings.get("variant")), config)
            return settings
        return {**settings, "variant": config.control_variant}

    def is_added(self, name: str, config: ModelConfig) -> bool:
        """The stream's own parameters."""
        return _ADDED.fullmatch(name) is not None

    def source_of_added(self, name: str) -> str | None:
        """The stream's output projections are copies of SD3's at first."""
        parts = _ADDED.fullmatch(name)
        if parts is None or not parts["rest"].startswith("to_out."):
            return None
        return f"{parts['block']}{parts['module']}.to_out.0.{parts['rest'].removeprefix('to_out.')}"

    def control_parameter_names(self, model: ModelMixin) -> frozenset[str]:
        """Those of the stream that have an effect."""
        from framer.models.control_stream import control_parameter_names

        return control_parameter_names(model)


def _check_variant(found: str, config: ModelConfig) -> None:
    if found != config.control_variant:
        raise ConfigError(
            f"model.control_variant {config.control_variant}: the model in {config.pretrained} was trained as {found}; "
            f"set model.control_variant to {found}"
        )
