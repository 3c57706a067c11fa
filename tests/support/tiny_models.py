"""Tiny models of diffusers with random weights, the same ones for the same arguments, and what to call them with."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn


def tiny_sd3(num_layers: int = 3, **config: object) -> SD3Transformer2DModel:
    """An SD3 transformer of width 16 on 4 channels."""
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


def sd3_inputs(height: int = 8, width: int = 12, channels: int = 4, batch: int = 2) -> dict[str, Tensor]:
    """Arguments of the forward of `tiny_sd3`, by default 8 x 12 latents: 4 x 6 tokens."""
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, channels, height, width, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 3, 8, generator=generator),
        "pooled_projections": torch.randn(batch, 8, generator=generator),
        "timestep": torch.linspace(300.0, 700.0, batch),
    }


def tiny_unet() -> Any:
    """A U-Net of two stages, of which the finer one attends to the text."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def unet_output(model: Any) -> Tensor:
    """What `tiny_unet` computes of 8 x 8 latents and 3 tokens of text."""
    generator = torch.Generator().manual_seed(2)
    latents, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 3, 8, generator=generator)
    output: Tensor = model(latents, 1, text).sample
    return output
