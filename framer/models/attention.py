"""Where a diffusers model has its attention."""

from __future__ import annotations

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention, MochiAttention
from torch import nn


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The attention modules that compute through a processor, as all of diffusers' own do, by name."""
    classes = (Attention, MochiAttention, AttentionModuleMixin)
    return {name: module for name, module in model.named_modules() if isinstance(module, classes)}
