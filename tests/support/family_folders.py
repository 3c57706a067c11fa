"""Tiny pretrained folders: what SD3.5, SD 2.1, SDXL and their autoencoders look like, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

LATENT_CHANNELS = 4


def _save(model: nn.Module, folder: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def autoencoder(folder: Path) -> Path:
    """Of two stages: latents are half as large as images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(16, 16),
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=8,
            scaling_factor=0.5,
            shift_factor=0.1,
        )
    model.save_pretrained(folder)
    return folder


def sd35(folder: Path) -> Path:
    """With a second attention in its first block, as SD3.5-medium."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=4,
            num_attention_heads=2,
            attention_head_dim=8,
            joint_attention_dim=8,
            caption_projection_dim=16,
            pooled_projection_dim=8,
            pos_embed_max_size=32,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        )
    return _save(model, folder, 1)


def sd21(folder: Path) -> Path:
    """Four stages down and up, as SD 1.5 and 2.1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = UNet2DConditionModel(
            sample_size=16,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=(16, 32, 32, 32),
            down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            attention_head_dim=(2, 4, 4, 4),
            cross_attention_dim=16,
            layers_per_block=1,
            norm_num_groups=8,
            use_linear_projection=True,
        )
    return _save(model, folder, 2)


def sdxl(folder: Path) -> Path:
    """Three stages down and up, pooled text and sizes, as SDXL."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = UNet2DConditionModel(
            sample_size=16,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=(16, 32, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(2, 4, 4),
            cross_attention_dim=16,
            layers_per_block=1,
            norm_num_groups=8,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=8 + 6 * 4,
        )
    return _save(model, folder, 3)


def texts(path: Path, *, prompt: int, pooled: int | None = None, seed: int = 0) -> Path:
    """Embeddings of a text of five tokens."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"prompt_embeds": torch.randn(5, prompt, generator=generator)}
    if pooled is not None:
        tensors["pooled_prompt_embeds"] = torch.randn(pooled, generator=generator)
    save_file(tensors, path)
    return path
