"""U-Nets of diffusers, tiny, with the stages of the published ones."""

from __future__ import annotations

from typing import Any, Final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

_FOUR_STAGES: Final[dict[str, Any]] = {
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "block_out_channels": (8, 16, 24, 24),
}
CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "sd15": {**_FOUR_STAGES, "attention_head_dim": 4},
    "sd21": {**_FOUR_STAGES, "attention_head_dim": (1, 2, 3, 3), "use_linear_projection": True},
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16, 24),
        "attention_head_dim": (1, 2, 3),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 8 + 6 * 4,
    },
}
STUDENTS: Final = {
    "sd15": (*(f"down_blocks.{i}" for i in range(4)), "mid_block", *(f"up_blocks.{i}" for i in range(4))),
    "sd21": (*(f"down_blocks.{i}" for i in range(4)), "mid_block", *(f"up_blocks.{i}" for i in range(4))),
    "sdxl": (*(f"down_blocks.{i}" for i in range(3)), "mid_block", *(f"up_blocks.{i}" for i in range(3))),
}


def unet(kind: str = "sd15", **config: Any) -> UNet2DConditionModel:
    """A random U-Net; the same one for the same arguments."""
    torch.manual_seed(0)
    settings = {"sample_size": 16, "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8}
    model = UNet2DConditionModel(**(settings | CONFIGS[kind] | config))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def unet_inputs(kind: str = "sd15", height: int = 16, width: int = 24, batch: int = 2, seed: int = 1) -> dict[str, Any]:
    """Arguments of its forward."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs: dict[str, Any] = {
        "sample": noise(batch, 4, height, width),
        "timestep": torch.linspace(300.0, 700.0, batch),
        "encoder_hidden_states": noise(batch, 5, 8),
    }
    if kind == "sdxl":
        sizes = torch.tensor([[128.0, 192.0, 0.0, 0.0, 128.0, 192.0]]).repeat(batch, 1)
        inputs["added_cond_kwargs"] = {"text_embeds": noise(batch, 8), "time_ids": sizes}
    return inputs
