"""Calling an SD3 transformer without a caption."""

from __future__ import annotations

from typing import Any

from diffusers import SD3Transformer2DModel
from torch import Tensor

from framer.config.model import ModelConfig
from framer.models.backbones.sd3 import SD3Backbone
from framer.models.text import text_embeddings


def model_inputs(
    model: SD3Transformer2DModel, sample: Tensor, condition: Tensor, timesteps: Tensor, *, text_tokens: int = 1
) -> dict[str, Any]:
    """The forward's arguments for text embeddings of zeros."""
    backbone = SD3Backbone()
    text = text_embeddings(ModelConfig(text_tokens=text_tokens), backbone.text_sizes(model))
    return backbone.inputs(model, sample, condition, timesteps, text.expand(len(sample), sample), image_size=(8, 8))
