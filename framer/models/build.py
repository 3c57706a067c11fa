"""Building the transformer that a configuration asks for."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from framer.config.model import ModelConfig
from framer.errors import UserError
from framer.models.conditioning import expand_input_channels
from framer.models.latents import build_latents
from framer.seeding import derived_seed

BASE_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "base"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def pretrained_folder(config: ModelConfig) -> Path | None:
    """The folder that ``model.pretrained`` names; None for random weights."""
    if config.pretrained is None:
        return None
    return BASE_FOLDER if config.pretrained == "base" else Path(config.pretrained).expanduser()


def build_transformer(config: ModelConfig, *, seed: int) -> SD3Transformer2DModel:
    """Builds the transformer in float32 on the CPU, conditioned on the low-resolution image.

    The global random state stays as it was.

    Args:
        config: Pretrained folder or architecture, conditioning and latent space.
        seed: Seed of random weights.

    Raises:
        UserError: The pretrained folder is missing, incomplete, damaged or of another class, or has other channels.
    """
    latents = build_latents(config)
    channels, conditioned = latents.channels, latents.channels + latents.condition_channels
    folder = pretrained_folder(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        model = _random_transformer(config, channels, conditioned) if folder is None else _load_transformer(folder)
    if int(model.config.out_channels) != channels:
        raise UserError(
            f"model.pretrained: the model predicts {model.config.out_channels} channels; "
            f"model.latents={config.latents} needs {channels}"
        )
    if int(model.config.in_channels) not in (channels, conditioned):
        raise UserError(
            f"model.pretrained: the model takes {model.config.in_channels} input channels; model.latents="
            f"{config.latents} needs {channels}, or {conditioned} with the low-resolution image"
        )
    expand_input_channels(model, conditioned)
    return model


def _random_transformer(config: ModelConfig, channels: int, in_channels: int) -> SD3Transformer2DModel:
    architecture = config.architecture
    model = SD3Transformer2DModel(
        sample_size=architecture.patch_size * architecture.pos_embed_max_size // 2,
        patch_size=architecture.patch_size,
        in_channels=in_channels,
        out_channels=channels,
        num_layers=architecture.num_layers,
        num_attention_heads=architecture.num_attention_heads,
        attention_head_dim=architecture.attention_head_dim,
        joint_attention_dim=architecture.joint_attention_dim,
        caption_projection_dim=architecture.num_attention_heads * architecture.attention_head_dim,
        pooled_projection_dim=architecture.pooled_projection_dim,
        pos_embed_max_size=architecture.pos_embed_max_size,
        qk_norm=architecture.qk_norm,
        dual_attention_layers=tuple(architecture.dual_attention_layers),
    )
    _initialise_as_dit(model)
    return model


@torch.no_grad()
def _initialise_as_dit(model: SD3Transformer2DModel) -> None:
    """DiT's start (arXiv 2212.09748), which diffusers leaves out: adaLN-Zero, patches embedded as by a linear layer."""
    nn.init.xavier_uniform_(model.pos_embed.proj.weight.flatten(1))
    model.pos_embed.proj.bias.zero_()
    modulations = [model.norm_out.linear, model.proj_out]
    for block in model.transformer_blocks:
        modulations += [block.norm1.linear, block.norm1_context.linear]
    for linear in modulations:
        linear.weight.zero_()
        linear.bias.zero_()


def _load_transformer(folder: Path) -> SD3Transformer2DModel:
    for name in ("config.json", WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"model.pretrained: {folder / name} not found; expected 'base' or a folder written by diffusers' "
                "save_pretrained"
            )
    trained_class = _read_json(folder / "config.json").get("_class_name")
    if trained_class != SD3Transformer2DModel.__name__:
        raise UserError(
            f"model.pretrained: {folder} holds {trained_class or 'no diffusers model'}; expected "
            f"{SD3Transformer2DModel.__name__}"
        )
    try:
        model, loaded = SD3Transformer2DModel.from_pretrained(
            folder,
            torch_dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a damaged file makes diffusers raise
        raise UserError(f"model.pretrained: cannot load {folder}: {type(error).__name__}: {error}") from error
    for what in ("missing", "unexpected"):
        names = sorted(loaded[f"{what}_keys"])
        if names:
            raise UserError(
                f"model.pretrained: {folder / WEIGHTS_FILE} does not fit config.json: {len(names)} {what} weights, "
                f"such as {names[0]}"
            )
    return model


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model.pretrained: {path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"model.pretrained: {path} is damaged: expected an object, got {type(content).__name__}")
    return content
