"""The trained model as a folder that diffusers loads without this package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file

from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.features import without_heads
from framer.files import sync_tree, write_text
from framer.models.backbones import backbone_for
from framer.models.controlled import CONTROLNET, ControlledModel
from framer.models.folders import controlnet_folder, pretrained_folder
from framer.models.lora import add_lora, lora_parameters, merged_weights, own_name, write_lora
from framer.models.restoration import RESTORATION_FILE, STEP, restoration_settings
from framer.models.text import NULL_TEXT_FILE, TextEmbeddings, write_text_embeddings
from framer.models.trainable import trainable_parameters
from framer.models.weights import has_weights
from framer.training.engine import master_weights
from framer.training.ranks import on_rank_zero

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from diffusers import ModelMixin

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LORA_FOLDER = "lora"
OTHER_WEIGHTS_FILE = "other_weights.safetensors"


def export_model(
    engine: DeepSpeedEngine, config: TrainConfig, folder: Path, *, step: int, null_text: TextEmbeddings | None = None
) -> None:
    """Writes ``config.json``, safetensors and the settings of inference; every rank must call it.

    Args:
        engine: Of any ZeRO stage; parameters are gathered one at a time.
        config: The run.
        folder: Replaced as a whole once the new one is complete.
        step: Optimizer steps taken, for ``restoration.json``.
        null_text: Embeddings of the empty text, where images have texts of their own.

    Raises:
        UserError: The folder cannot be written to.
    """
    dtype = DTYPES[config.training.export_dtype]
    weights = {}
    prefix, _ = _exported_part(engine.module)
    for name, value in master_weights(engine):
        if dist.get_rank() == 0 and name.startswith(prefix):
            weights[name] = value.to("cpu", kept_dtype(value, config, dtype), copy=True)
    on_rank_zero(
        lambda: write_export(engine.module, weights, config, folder, step=step, dtype=dtype, null_text=null_text)
    )


def kept_dtype(value: torch.Tensor, config: TrainConfig, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a weight waits to be written in ``dtype``: its own where adapters are yet to be merged."""
    return dtype if config.model.lora is None else value.dtype


def write_export(
    model: ModelMixin,
    weights: dict[str, torch.Tensor],
    config: TrainConfig,
    folder: Path,
    *,
    step: int | None = None,
    dtype: torch.dtype = torch.float32,
    null_text: TextEmbeddings | None = None,
) -> None:
    """Writes ``config.json``, safetensors and the settings of inference; with LoRA, adapters too where asked for.

    Args:
        model: Says the architecture; its weights are not read.
        weights: All parameters and persistent buffers; those of heads, which served training alone, are left out.
        config: The run.
        folder: Replaced as a whole once the new one is complete.
        step: Optimizer steps that the weights have taken; None where they were not trained.
        dtype: Of the weights written.
        null_text: Embeddings of the empty text, written too where the configuration names no text.

    Raises:
        UserError: The folder cannot be written to.
    """
    try:
        write_diffusers_folder(
            model, without_heads(weights), config, folder, step=step, dtype=dtype, null_text=null_text
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the export {folder}: {error}") from error


def write_diffusers_folder(
    model: ModelMixin,
    weights: dict[str, torch.Tensor],
    config: TrainConfig,
    folder: Path,
    *,
    step: int | None = None,
    dtype: torch.dtype = torch.float32,
    null_text: TextEmbeddings | None = None,
) -> None:
    """Writes weights and config beside ``folder``, then puts them in its place.

    Args:
        model: The trained model, whose class and settings are exported; its own weights are not read.
        weights: By name, all parameters and buffers of what is exported.
        config: The run's.
        folder: Replaced if it is there.
        step: The optimizer step that the weights are of; None leaves it out.
        dtype: What the weights are written in.
        null_text: Embeddings of the empty text, ``[T, D]`` and ``[P]``, to go with the model; None: none go.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    weights = _with_exact_frozen_weights(model, weights, config)
    prefix, part = _exported_part(model)
    weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    whole = _without_weights(part)
    merged = (
        weights if config.model.lora is None else merged_weights(_without_weights(model), weights, config.model.lora)
    )
    whole.load_state_dict({name: value.to(dtype) for name, value in merged.items()}, assign=True, strict=True)
    whole.save_pretrained(unfinished, safe_serialization=True)
    if config.model.lora is not None and config.model.lora.export == "adapter":
        _write_adapter(model, weights, config, unfinished / LORA_FOLDER, dtype)
    settings = restoration_settings(config)
    if null_text is not None and config.model.text_embeddings is None:
        write_text_embeddings(unfinished / NULL_TEXT_FILE, null_text)
        settings["null_text"] = NULL_TEXT_FILE
    if step is not None:
        settings[STEP] = step
    write_text(unfinished / RESTORATION_FILE, json.dumps(settings, indent=2) + "\n")
    sync_tree(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _exported_part(model: ModelMixin | ControlledModel) -> tuple[str, ModelMixin]:
    """What its parameters' names begin with, and itself: the model, or the ControlNet beside a frozen one."""
    return (f"{CONTROLNET}.", model.controlnet) if isinstance(model, ControlledModel) else ("", model)


def _without_weights(model: ModelMixin) -> ModelMixin:
    with torch.device("meta"):
        return type(model).from_config(dict(model.config))


def _with_exact_frozen_weights(
    model: ModelMixin, weights: dict[str, torch.Tensor], config: TrainConfig
) -> dict[str, torch.Tensor]:
    """Takes frozen weights from the folders that they came from, where training held them in half precision alone.

    Those that trained have a float32 master copy. Without the folders the rest stays as it is.
    """
    folder, controlnet = pretrained_folder(config.model), controlnet_folder(config.model)
    if config.training.precision == "fp32" or folder is None or not has_weights(folder):
        return weights
    if controlnet is not None and not has_weights(controlnet):
        return weights
    planned = _without_weights(model)
    if config.model.lora is not None:
        add_lora(planned, config.model.lora, seed=0)
    trained, exact = trainable_parameters(planned, config.model), dict(weights)
    with backbone_for(config.model).open_weights(folder, config.model) as reader:
        for name, value in weights.items():
            if name not in trained and own_name(name) in reader.names:
                stored = reader.read(own_name(name))
                if stored.shape == value.shape:
                    exact[name] = stored
    return exact


def _write_adapter(
    model: ModelMixin,
    weights: dict[str, torch.Tensor],
    config: TrainConfig,
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """Writes all that trained and nothing else: the adapters, and ``lora.train_also`` by its own names."""
    assert config.model.lora is not None
    write_lora(folder, weights, config.model.lora, model_class=type(model).__name__, dtype=dtype)
    adapted = _without_weights(model)
    add_lora(adapted, config.model.lora, seed=0)
    others = trainable_parameters(adapted, config.model) - lora_parameters(adapted)
    if others:
        trained = {own_name(name): weights[name].to(dtype).contiguous() for name in sorted(others)}
        save_file(trained, folder / OTHER_WEIGHTS_FILE, metadata={"format": "pt"})
