"""The transformer of a configuration without storage, for tracing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from framer.config.model import ArchitectureConfig, ModelConfig
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.models.build import build_transformer, pretrained_folder

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def planned_architecture(config: ModelConfig) -> ArchitectureConfig:
    """The architecture to be trained: the configured one, or that of the pretrained folder.

    Raises:
        UserError: The pretrained folder has no readable ``config.json``, or one of another architecture.
    """
    folder = pretrained_folder(config)
    return config.architecture if folder is None else _read_architecture(folder / "config.json")


def fake_transformer(config: TrainConfig) -> SD3Transformer2DModel:
    """The transformer as DeepSpeed would train it: in ``training.precision``, in training mode, without storage.

    Call it under ``FakeTensorMode``.

    Raises:
        UserError: As :func:`planned_architecture`.
    """
    # Weights are not read: a model of the same sizes, with random ones, takes the same memory.
    model = config.model.model_copy(update={"pretrained": None, "architecture": planned_architecture(config.model)})
    dtype, previous = DTYPES[config.training.precision], torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # parameters without storage cannot be converted afterwards
    try:
        transformer = build_transformer(model, seed=0)
    finally:
        torch.set_default_dtype(previous)
    for module in transformer.modules():
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, value.to(dtype) if value.is_floating_point() else value)
    return transformer.train()


def no_storage() -> FakeTensorMode:
    """The mode in which models and steps of any size can be traced on any machine."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def _read_architecture(path: Path) -> ArchitectureConfig:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: content[name] for name in ArchitectureConfig.model_fields if name in content}
        return ArchitectureConfig.model_validate(fields)
    except FileNotFoundError:
        raise UserError(f"model.pretrained: {path} not found; expected 'base' or a diffusers folder") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"model.pretrained: cannot plan the model of {path}: {error}") from None
