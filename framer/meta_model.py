"""The model of a configuration on the device ``meta``, where tensors have sizes and no storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from framer.alignment import ImageEncoder, attach_heads_of, planned_encoder
from framer.config.data import DataConfig
from framer.config.distillation import FramerConfig
from framer.config.training import TrainConfig
from framer.features import adapter_for
from framer.models.attention_backends import check_attention_route
from framer.models.build import build_model_without_weights
from framer.models.trainable import freeze_the_rest, trainable_parameters

if TYPE_CHECKING:
    from diffusers import ModelMixin

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
META: Final = torch.device("meta")


def meta_model(config: TrainConfig, *, with_heads: bool = False) -> ModelMixin:
    """The model as DeepSpeed would train it: in ``training.precision``, in training mode, without storage.

    Args:
        config: The run.
        with_heads: Whether it has the heads of the alignment loss, which train with it.

    Raises:
        UserError: The pretrained folder has no readable ``config.json``, or one of another class, or a pattern of
            ``model.trainable`` matches nothing.
    """
    with META:
        model = build_model_without_weights(config.model)
    if config.model.attention_backend is not None:
        check_attention_route(model, config.model.attention_backend)
    freeze_the_rest(model, trainable_parameters(model, config.model))
    if with_heads:
        attach_heads_of(adapter_for(model).model, config.framer, encoder=meta_encoder(config.framer))
    for parameter in model.parameters():  # DeepSpeed leaves buffers in float32
        parameter.data = parameter.data.to(DTYPES[config.training.precision])
    return model.train()


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
