"""The transformer of a configuration on the device ``meta``, where tensors have sizes and no storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from framer.alignment import ImageEncoder, attach_projectors, planned_encoder
from framer.config.data import DataConfig
from framer.config.distillation import FramerConfig
from framer.config.model import ArchitectureConfig, ModelConfig
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.models.build import build_transformer, pretrained_folder
from framer.models.trainable import freeze_the_rest, trainable_parameters

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
META: Final = torch.device("meta")


def planned_architecture(config: ModelConfig) -> ArchitectureConfig:
    """The architecture to be trained: the configured one, or that of the pretrained folder.

    Raises:
        UserError: The pretrained folder has no readable ``config.json``, or one of another architecture.
    """
    folder = pretrained_folder(config)
    return config.architecture if folder is None else _read_architecture(folder / "config.json")


def meta_transformer(config: TrainConfig, *, with_projectors: bool = False) -> SD3Transformer2DModel:
    """The transformer as DeepSpeed would train it: in ``training.precision``, in training mode, without storage.

    Args:
        config: The run.
        with_projectors: Whether it has the projectors of the alignment loss, which train with it.

    Raises:
        UserError: As :func:`planned_architecture`, or a pattern of ``model.trainable`` matches nothing.
    """
    # Weights are not read: a model of the same sizes, with random ones, takes the same memory.
    model = config.model.model_copy(update={"pretrained": None, "architecture": planned_architecture(config.model)})
    with META:
        transformer = build_transformer(model, seed=0)
    freeze_the_rest(transformer, trainable_parameters(transformer, config.model))
    if with_projectors:
        attach_projectors(transformer, config.framer, encoder=meta_encoder(config.framer))
    for parameter in transformer.parameters():  # DeepSpeed leaves buffers in float32
        parameter.data = parameter.data.to(DTYPES[config.training.precision])
    return transformer.train()


def meta_encoder(config: FramerConfig) -> ImageEncoder | None:
    """The encoder of method ``repa`` without storage; None with other methods.

    Raises:
        UserError: Its folder is missing or damaged, or holds another kind of model.
    """
    if not config.enabled or config.repa.encoder is None:
        return None
    with META:
        return planned_encoder(config.repa.encoder)


def crop_sizes(config: DataConfig) -> list[tuple[int, int]]:
    """Heights and widths of training crops."""
    return [(height, width) for height, width in config.buckets] or [(config.crop_size, config.crop_size)]


def _read_architecture(path: Path) -> ArchitectureConfig:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: content[name] for name in ArchitectureConfig.model_fields if name in content}
        return ArchitectureConfig.model_validate(fields)
    except FileNotFoundError:
        raise UserError(f"model.pretrained: {path} not found; expected 'base' or a diffusers folder") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"model.pretrained: cannot plan the model of {path}: {error}") from None
