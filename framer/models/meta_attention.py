"""Attention on the device ``meta``, where torch would choose the implementation that keeps all scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from framer.config.model import ModelConfig
from framer.patching import replaced

KEEPS_SCORES = "_native_math"
"""The backend that keeps all scores on every device."""


def planned_attention(config: ModelConfig) -> AbstractContextManager[None]:
    """Attention as ``model.attention_backend`` computes it, as to what it keeps."""
    return nullcontext() if config.attention_backend == KEEPS_SCORES else fused_attention()


@contextmanager
def fused_attention() -> Iterator[None]:
    """Sends attention to the fused operator, which keeps its inputs, its output and a number a query.

    What GPUs run (flash and memory-efficient attention) and what CPUs run keep the same, in operators of other names.
    """
    with replaced(torch.nn.functional, "scaled_dot_product_attention", _fused):
        yield


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    output: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return output
