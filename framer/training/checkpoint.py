"""Checkpoints: written aside, synced, then published under their final name."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from framer.errors import UserError
from framer.files import sync_folder, sync_tree, write_text

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"step-(\d{8})")
_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class TrainerState:
    """What the trainer must know to go on, beside the engine's own state."""

    step: int
    """Optimizer steps taken."""
    micro_steps: int
    """Forward passes taken by each rank: the position in the training stream."""
    framer: dict[str, int]
    """State of the random-layer negatives."""
    world_size: int
    zero_stage: int
    precision: str
    model: dict[str, Any]
    """The transformer's config, to recognise a checkpoint of another model."""


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after ``step`` optimizer steps."""
    return f"step-{step:08d}"


def save_checkpoint(engine: DeepSpeedEngine, folder: Path, state: TrainerState, *, kept: int) -> Path:
    """Saves on all ranks; every rank must call it.

    Args:
        engine: Model and optimizer.
        folder: Where checkpoints live.
        state: Saved beside them.
        kept: Newest checkpoints that stay; older ones are removed after this one is safely on disk.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: The disk is full or the folder cannot be written to; earlier checkpoints are untouched.
    """
    final = folder / checkpoint_name(state.step)
    unfinished = folder / f"{_UNFINISHED}-{final.name}"
    failure: str | None = None
    if dist.get_rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
    dist.barrier()
    try:
        engine.save_checkpoint(str(folder), tag=unfinished.name, save_latest=False)
        # Random state of layers that draw numbers themselves, such as dropout.
        torch.save({"torch": torch.get_rng_state()}, unfinished / f"rng-rank-{dist.get_rank()}.pt")
        if dist.get_rank() == 0:
            write_text(unfinished / STATE_FILE, json.dumps(asdict(state), indent=2))
            sync_tree(unfinished)
    except (OSError, RuntimeError, UserError) as error:
        failure = str(error)
    _raise_on_all_ranks(failure, f"cannot save the checkpoint {final}")
    if dist.get_rank() == 0:
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        sync_folder(folder)
        for old in find_checkpoints(folder)[:-kept]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def _raise_on_all_ranks(failure: str | None, what: str) -> None:
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    for rank, message in enumerate(failures):
        if message is not None:
            raise UserError(f"{what}: rank {rank}: {message}")


def find_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints in ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / STATE_FILE).is_file()]
    return sorted(found, key=lambda p: p.name)


def choose_checkpoint(resume: str, folder: Path) -> Path | None:
    """The checkpoint that ``training.resume`` means, or None to start anew.

    Args:
        resume: ``auto``, ``never`` or a path.
        folder: The run's checkpoints.

    Raises:
        UserError: The path is not a checkpoint, or ``never`` would overwrite a run's checkpoints.
    """
    found = find_checkpoints(folder)
    if resume == "auto":
        return found[-1] if found else None
    if resume == "never":
        if found:
            raise UserError(
                f"training.resume=never, but {folder} holds {found[-1].name}; choose another output_dir, "
                "remove the folder, or continue with training.resume=auto"
            )
        return None
    path = Path(resume)
    if not (path / STATE_FILE).is_file():
        raise UserError(
            f"training.resume: {path} is not a checkpoint (no {STATE_FILE}); expected auto, never, or a folder such "
            f"as {folder / checkpoint_name(100)}"
        )
    return path


def read_state(checkpoint: Path) -> TrainerState:
    """Reads the trainer's state.

    Raises:
        UserError: The file is damaged.
    """
    path = checkpoint / STATE_FILE
    try:
        return TrainerState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}; remove the folder to use the previous checkpoint") from None


def load_checkpoint(engine: DeepSpeedEngine, checkpoint: Path, *, expected: TrainerState) -> TrainerState:
    """Restores model and optimizer; every rank must call it.

    Args:
        engine: Freshly started, of the same model.
        checkpoint: A finished checkpoint.
        expected: The present run's world size, stage, precision and model; step and position are ignored.

    Raises:
        UserError: The checkpoint is of another model, world size, ZeRO stage or precision, or is damaged.
    """
    state = read_state(checkpoint)
    differing = [
        f"{key} {state.model.get(key)} (now {value})"
        for key, value in expected.model.items()
        if state.model.get(key) != value and not key.startswith("_")
    ]
    if differing:
        raise UserError(f"{checkpoint} is of another model: {', '.join(differing)}")
    for key in ("world_size", "zero_stage", "precision"):
        if getattr(state, key) != getattr(expected, key):
            raise UserError(
                f"{checkpoint} was saved with {key} {getattr(state, key)}; this run has {getattr(expected, key)}"
            )
    failure: str | None = None
    try:
        path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        if path is None:
            failure = "files are missing"
        else:
            rng = torch.load(checkpoint / f"rng-rank-{dist.get_rank()}.pt", weights_only=True)
            torch.set_rng_state(rng["torch"])
    except Exception as error:  # whatever a damaged file makes the unpickler raise
        failure = f"{type(error).__name__}: {error}"
    _raise_on_all_ranks(failure, f"cannot load {checkpoint}; remove the folder to use the previous one")
    return state
