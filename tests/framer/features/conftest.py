from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn


def _model(num_layers: int = 3, **config: object) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": num_layers,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 8,
        "pos_embed_max_size": 16,
    }
    model = SD3Transformer2DModel(**(settings | config))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def _inputs(height: int = 8, width: int = 12, channels: int = 4, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, channels, height, width, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 3, 8, generator=generator),
        "pooled_projections": torch.randn(batch, 8, generator=generator),
        "timestep": torch.linspace(300.0, 700.0, batch),
    }


@pytest.fixture
def make_model() -> Callable[..., SD3Transformer2DModel]:
    """Builds a random SD3 transformer of width 16; the same one for the same arguments."""
    return _model


@pytest.fixture
def make_inputs() -> Callable[..., dict[str, Tensor]]:
    """Builds the arguments of the model's forward, by default 8 x 12 latents: 4 x 6 tokens."""
    return _inputs
