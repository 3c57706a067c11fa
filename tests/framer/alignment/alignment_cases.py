"""A tiny transformer, its inputs, and a tiny vision model in a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from framer.alignment import ImageEncoder

LAYERS = 6
CHANNELS = 16


def tiny_transformer() -> SD3Transformer2DModel:
    """Six blocks whose features all differ."""
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=3,
        out_channels=3,
        num_layers=LAYERS,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=CHANNELS,
        pooled_projection_dim=8,
        pos_embed_max_size=16,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def tiny_inputs(batch: int = 3) -> dict[str, Tensor]:
    """A grid of 4 x 6 tokens."""
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 3, 8, 12, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 3, 8, generator=generator),
        "pooled_projections": torch.randn(batch, 8, generator=generator),
        "timestep": torch.linspace(300.0, 700.0, batch),
    }


def tiny_images(batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1


def save_dino(folder: Path, *, registers: bool = False) -> Path:
    """A DINOv2 of random weights, with patches of 7 pixels, as transformers saves it."""
    torch.manual_seed(5)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    model = (
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=4))
        if registers
        else Dinov2Model(Dinov2Config(**sizes))
    )
    model.save_pretrained(folder)
    return folder


class MeanColours(ImageEncoder):
    """An encoder of one's own, whose grid is always 2 x 2."""

    def __init__(self) -> None:
        super().__init__(channels=3)

    def features(self, images: Tensor, height: int, width: int) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2)
