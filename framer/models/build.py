"""Building the transformer that a configuration asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from framer.config.model import ModelConfig
from framer.errors import ConfigError, UserError
from framer.models.conditioning import expand_input_channels
from framer.models.latents import build_latents
from framer.models.lora import add_lora
from framer.models.modulewise import check_names, fill_modules, filler_from, large_parameters_on_meta, load_buffers
from framer.models.trainable import trainable_parameters
from framer.models.weights import WEIGHTS_FILE, has_weights, open_weights
from framer.seeding import derived_seed

BASE_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "base"
CONFIG_FILE = "config.json"
PATCH_PROJECTION = "pos_embed.proj"
_MODULATIONS = re.compile(r"(^norm_out\.linear|^proj_out|\.norm1\.linear|\.norm1_context\.linear)$")


def pretrained_folder(config: ModelConfig) -> Path | None:
    """The folder that ``model.pretrained`` names; None for random weights."""
    if config.pretrained is None:
        return None
    return BASE_FOLDER if config.pretrained == "base" else Path(config.pretrained).expanduser()


def build_transformer(config: ModelConfig, *, seed: int) -> SD3Transformer2DModel:
    """Builds the transformer in float32 on the CPU, conditioned on the low-resolution image.

    The global random state stays as it was.

    Args:
        config: Pretrained folder or architecture, conditioning, latent space and adapters.
        seed: Seed of random weights.

    Raises:
        UserError: The pretrained folder is missing, incomplete, damaged or of another class, or has other channels; or
            adapters match no layer, or leave the low-resolution image without a way into the model.
    """
    folder = pretrained_folder(config)
    with _random_state_of_weights(seed):
        if folder is None:
            model = _new_transformer(config)
            for name, module in model.named_modules():
                _start_as_dit(name, module)
            _embed_patches_as_dit(model)
        else:
            model = _load_transformer(folder)
    widened = _fit_channels(model, config)
    _add_adapters(model, config, seed=seed, widened=widened)
    return model


def build_transformer_by_module(
    config: ModelConfig, *, seed: int, fill: bool, place: Callable[[nn.Module], None]
) -> SD3Transformer2DModel:
    """Builds what :func:`build_transformer` builds, with one module's parameters at a time in memory.

    Args:
        config: As there.
        seed: As there.
        fill: False where another rank gives the parameters their values.
        place: Takes over a module once its own parameters are made; it may partition them.

    Raises:
        UserError: As there.
    """
    folder = pretrained_folder(config)
    with ExitStack() as stack:
        stack.enter_context(_random_state_of_weights(seed))
        if folder is None:
            with large_parameters_on_meta():
                model = _new_transformer(config)
            fill_modules(model, _draw if fill else None, place, kept=PATCH_PROJECTION)
            if fill:
                _embed_patches_as_dit(model)
        else:
            _check_folder(folder)
            with large_parameters_on_meta():
                model = SD3Transformer2DModel.from_config(_read_json(folder / CONFIG_FILE))
            reader = stack.enter_context(open_weights(folder))
            check_names(model, reader, folder)
            load_buffers(model, reader)
            fill_modules(model, filler_from(reader) if fill else None, place, kept=PATCH_PROJECTION)
        widened = _fit_channels(model, config)
        projection = model.get_submodule(PATCH_PROJECTION)
        for module in (projection, *_add_adapters(model, config, seed=seed, widened=widened)):
            place(module)
    return model


@contextmanager
def _random_state_of_weights(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        yield


def _fit_channels(model: SD3Transformer2DModel, config: ModelConfig) -> bool:
    """Gives the model the inputs of the low-resolution image; whether it had none."""
    latents = build_latents(config)
    channels, conditioned = latents.channels, latents.channels + latents.condition_channels
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
    widened = int(model.config.in_channels) < conditioned
    expand_input_channels(model, conditioned)
    return widened


def _add_adapters(
    model: SD3Transformer2DModel, config: ModelConfig, *, seed: int, widened: bool
) -> tuple[nn.Module, ...]:
    """Adds what ``model.lora`` asks for; the new modules with parameters."""
    if config.lora is None:
        return ()
    adapters = add_lora(model, config.lora, seed=seed)
    if widened and not any(name.startswith(PATCH_PROJECTION) for name in trainable_parameters(model, config)):
        raise ConfigError(
            f"model.lora: {config.pretrained} has no inputs for the low-resolution image; it gets them with weights of "
            "zero, which would not train, so that the image would never count: add control to model.lora.train_also, "
            f"or {PATCH_PROJECTION} to model.lora.target_modules"
        )
    return adapters


def _new_transformer(config: ModelConfig) -> SD3Transformer2DModel:
    architecture, latents = config.architecture, build_latents(config)
    return SD3Transformer2DModel(
        sample_size=architecture.patch_size * architecture.pos_embed_max_size // 2,
        patch_size=architecture.patch_size,
        in_channels=latents.channels + latents.condition_channels,
        out_channels=latents.channels,
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


# DiT's start (arXiv 2212.09748), which diffusers leaves out: adaLN-Zero, and patches embedded as by a linear layer.
@torch.no_grad()
def _start_as_dit(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.Linear) and _MODULATIONS.search(name):
        module.weight.zero_()
        module.bias.zero_()


@torch.no_grad()
def _embed_patches_as_dit(model: SD3Transformer2DModel) -> None:
    projection = model.get_submodule(PATCH_PROJECTION)
    nn.init.xavier_uniform_(projection.weight.flatten(1))
    projection.bias.zero_()


def _draw(name: str, module: nn.Module) -> None:
    """Random weights as the module draws them when it is made; those without this method have theirs already."""
    draw = getattr(module, "reset_parameters", None)
    if draw is not None:
        draw()
    _start_as_dit(name, module)


def _check_folder(folder: Path) -> None:
    for name, there in (
        (CONFIG_FILE, (folder / CONFIG_FILE).is_file()),
        (WEIGHTS_FILE, has_weights(folder)),
    ):
        if not there:
            raise UserError(
                f"model.pretrained: {folder / name} not found; expected 'base' or a folder written by diffusers' "
                "save_pretrained"
            )
    trained_class = _read_json(folder / CONFIG_FILE).get("_class_name")
    if trained_class != SD3Transformer2DModel.__name__:
        raise UserError(
            f"model.pretrained: {folder} holds {trained_class or 'no diffusers model'}; expected "
            f"{SD3Transformer2DModel.__name__}"
        )


def _load_transformer(folder: Path) -> SD3Transformer2DModel:
    _check_folder(folder)
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
