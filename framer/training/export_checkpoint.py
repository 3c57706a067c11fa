"""The command ``framer export``: a checkpoint as a diffusers folder, without GPUs and without starting ranks."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from framer.errors import UserError
from framer.extras import require

HELP = "Write a checkpoint's transformer as a folder that diffusers loads."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="for example runs/quickstart/checkpoints/step-00000300")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder; must not exist")
    parser.add_argument(
        "--dtype", choices=["fp32", "bf16", "fp16"], help="precision of the weights; training.export_dtype by default"
    )
    parser.add_argument("--ema", action="store_true", help="the average of the weights instead of the last ones")


def run(arguments: argparse.Namespace) -> int:
    """Exports; the exit status."""
    export_checkpoint(arguments.checkpoint, arguments.output, dtype=arguments.dtype, ema=arguments.ema)
    sys.stdout.write(f"export: {arguments.output}\n")
    return 0


def export_checkpoint(checkpoint: Path, folder: Path, *, dtype: str | None = None, ema: bool = False) -> None:
    """Writes what the run that saved the checkpoint would export at its step.

    In runs of half precision the weights are the optimizer's float32 master copy.

    Args:
        checkpoint: Of any ZeRO stage and number of ranks; verified first.
        folder: Made.
        dtype: ``fp32``, ``bf16`` or ``fp16``; None: the run's ``training.export_dtype``.
        ema: The average of the weights where parameters have one.

    Raises:
        UserError: The checkpoint is damaged, of another version or without an average, the folder exists or cannot be
            written to, or the run's texts are no longer where they were.
    """
    from framer.config.loading import build_config
    from framer.config.training import TrainConfig
    from framer.data.sources import null_text
    from framer.models.backbones import model_class
    from framer.training.export import DTYPES, kept_dtype, write_export
    from framer.training.manifest import find_damage, read_manifest
    from framer.training.shares import whole_averages
    from framer.training.trainer_state import STATE_FILE, read_state

    if folder.exists():
        raise UserError(f"{folder} exists; name a new folder")
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint} is not a checkpoint folder")
    try:
        damage = find_damage(checkpoint, read_manifest(checkpoint))
    except ValueError as error:
        damage = [str(error)]
    if damage:
        raise UserError(f"{checkpoint} is damaged: {', '.join(damage)}")
    if (checkpoint / "offloaded_tensors").is_dir():
        raise UserError(f"{checkpoint} has its optimizer state as NVMe files, which only the run itself can export")
    state = read_state(checkpoint)
    config = build_config(TrainConfig, state.config, source=str(checkpoint / STATE_FILE))
    text = None if config.model.text_embeddings is not None else null_text(config.data)
    wanted = DTYPES[dtype or config.training.export_dtype]
    try:
        averages = whole_averages(checkpoint, state.world_size) if ema else {}
        weights = {
            name: value.to(kept_dtype(value, config, wanted), copy=True)
            for name, value in _averaged(checkpoint_weights(checkpoint), averages)
        }
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"cannot read the weights of {checkpoint}: {type(error).__name__}: {error}") from error
    if ema and not averages:
        raise UserError(f"{checkpoint} has no average of the weights; export it without --ema")
    with torch.device("meta"):
        model = model_class(state.model_class).from_config(state.model)
    write_export(model, weights, config, folder, step=state.step, dtype=wanted, null_text=text)


def _averaged(weights: Iterator[tuple[str, Tensor]], averages: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights:
        yield name, averages[name][: value.numel()].view_as(value) if name in averages else value


def checkpoint_weights(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the transformer's parameters and buffers on the CPU, float32 where a master copy was saved.

    Args:
        checkpoint: Of any ZeRO stage and number of ranks. Its files are pickles: trusted.

    Raises:
        OSError: A file is missing or cannot be read.
        RuntimeError: Files do not fit together.
        ValueError: As RuntimeError.
    """
    whole = checkpoint / "mp_rank_00_model_states.pt"
    if any(checkpoint.glob("*_optim_states.pt")):
        reader = require("deepspeed.utils.zero_to_fp32", extra="train")
        # It reports its progress with print and a bar.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            lazy = reader.get_fp32_state_dict_from_zero_checkpoint(
                str(checkpoint.parent), tag=checkpoint.name, lazy_mode=True
            )
        found = set(lazy)
        for name in list(lazy):
            yield name, lazy.pop(name).contiguous()
        if whole.is_file():
            # In stage 1 frozen parameters are there alone.
            content = torch.load(whole, map_location="cpu", mmap=True, weights_only=False)
            yield from ((name, value) for name, value in content["module"].items() if name not in found)
        return
    content = torch.load(whole, map_location="cpu", mmap=True, weights_only=False)
    yield from content["module"].items()
