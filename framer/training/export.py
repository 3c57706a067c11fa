"""The trained transformer as a folder that diffusers loads without this package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from diffusers import SD3Transformer2DModel
from safetensors import SafetensorError

from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.features import without_heads
from framer.files import sync_tree, write_text
from framer.models.restoration import RESTORATION_FILE, restoration_settings
from framer.training.engine import master_weights
from framer.training.ranks import on_rank_zero

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export_model(engine: DeepSpeedEngine, config: TrainConfig, folder: Path) -> None:
    """Writes ``config.json``, safetensors and the settings of inference; every rank must call it.

    Args:
        engine: Of any ZeRO stage; parameters are gathered one at a time.
        config: The run.
        folder: Replaced as a whole once the new one is complete.

    Raises:
        UserError: The folder cannot be written to.
    """
    weights = {}
    for name, value in master_weights(engine):
        if dist.get_rank() == 0:
            weights[name] = value.to("cpu", DTYPES[config.training.export_dtype], copy=True)
    on_rank_zero(lambda: write_export(engine.module, weights, config, folder))


def write_export(
    model: SD3Transformer2DModel, weights: dict[str, torch.Tensor], config: TrainConfig, folder: Path
) -> None:
    """Writes ``config.json``, safetensors and the settings of inference.

    Args:
        model: Says the architecture; its weights are not read.
        weights: All parameters and persistent buffers; those of heads, which served training alone, are left out.
        config: The run.
        folder: Replaced as a whole once the new one is complete.

    Raises:
        UserError: The folder cannot be written to.
    """
    try:
        write_diffusers_folder(model, without_heads(weights), config, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the export {folder}: {error}") from error


def write_diffusers_folder(
    model: SD3Transformer2DModel, weights: dict[str, torch.Tensor], config: TrainConfig, folder: Path
) -> None:
    """Writes weights and config beside ``folder``, then puts them in its place."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with torch.device("meta"):
        whole = SD3Transformer2DModel.from_config(dict(model.config))
    whole.load_state_dict(weights, assign=True, strict=True)
    whole.save_pretrained(unfinished, safe_serialization=True)
    write_text(unfinished / RESTORATION_FILE, json.dumps(restoration_settings(config), indent=2) + "\n")
    sync_tree(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
