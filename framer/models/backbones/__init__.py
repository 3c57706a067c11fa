"""Families of models that the trainer builds and calls: a new one is a file here and a line in the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from framer.config.model import ModelConfig
from framer.errors import ConfigError, UserError
from framer.models.backbones.base import Backbone, InputChannels
from framer.models.backbones.control_stream import ControlStreamBackbone
from framer.models.backbones.controlnet import ControlNetSD3Backbone, ControlNetUNetBackbone
from framer.models.backbones.sd3 import SD3Backbone
from framer.models.backbones.unet import UnconditionedUNetBackbone, UNetBackbone
from framer.models.folders import class_in_folder, pretrained_folder

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["Backbone", "InputChannels", "backbone_for", "model_class"]

_BACKBONES: Final[tuple[tuple[str, str, Backbone], ...]] = (
    ("sd3", "concat", SD3Backbone()),
    ("sd3", "control_stream", ControlStreamBackbone()),
    ("sd3", "controlnet", ControlNetSD3Backbone()),
    ("unet", "concat", UNetBackbone()),
    ("unet", "controlnet", ControlNetUNetBackbone()),
    ("unet", "none", UnconditionedUNetBackbone()),
)
"""By ``model.architecture.type`` and ``model.conditioning``."""


def model_class(name: str) -> type[ModelMixin]:
    """The class of a checkpoint's model.

    Raises:
        UserError: It is not among the families known here.
    """
    for _, _, backbone in _BACKBONES:
        if backbone.class_name == name:
            return backbone.model_class
    raise UserError(f"the model class {name} is not known to this version")


def backbone_for(config: ModelConfig) -> Backbone:
    """The family of ``model.pretrained``, or of ``model.architecture``, with ``model.conditioning``.

    Raises:
        UserError: The pretrained folder's ``config.json`` is missing or damaged.
        ConfigError: Its model is of another class, or cannot be conditioned so.
    """
    folder = pretrained_folder(config)
    found = None if folder is None else class_in_folder(folder)
    possible = {
        conditioning: backbone
        for kind, conditioning, backbone in _BACKBONES
        if (config.architecture.type == kind if found is None else found in backbone.starts_from)
    }
    if not possible:
        known = sorted({name for _, _, backbone in _BACKBONES for name in backbone.starts_from})
        raise ConfigError(f"model.pretrained: {folder} holds {found}; expected {' or '.join(known)}")
    if config.conditioning not in possible:
        raise ConfigError(
            f"model.conditioning: {config.conditioning} is not possible with "
            f"{found or f'model.architecture.type {config.architecture.type}'}; expected {' or '.join(possible)}"
        )
    return possible[config.conditioning]
