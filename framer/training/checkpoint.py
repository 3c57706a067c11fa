"""Checkpoints: written aside, synced, then published under their final name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from framer.errors import UserError
from framer.files import sync_folder, sync_tree, write_text
from framer.training.ranks import on_rank_zero, raise_on_all_ranks

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"step-(\d{8})")
_UNFINISHED = ".unfinished"
# What a continued run may change; anything else would make it another run under the same name.
_CHANGEABLE = (
    "output_dir",
    "evaluation.",
    "health.",
    "data.evaluation",
    "data.workers",
    "training.max_steps",
    "training.checkpoint_steps",
    "training.checkpoints_kept",
    "training.sample_steps",
    "training.resume",
    "trackers.",
    "distributed.",
    "training.export_dtype",
    "training.activation_checkpointing",
)


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
    config: dict[str, Any]
    """The run's resolved configuration."""
    model: dict[str, Any]
    """The transformer's config, to recognise a checkpoint of another model."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Counts of skipped steps."""


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after ``step`` optimizer steps."""
    return f"step-{step:08d}"


def save_checkpoint(
    engine: DeepSpeedEngine,
    folder: Path,
    state: TrainerState,
    *,
    kept: int,
    rank_state: Mapping[str, Any] | None = None,
) -> Path:
    """Saves on all ranks; every rank must call it.

    Args:
        engine: Model and optimizer.
        folder: Where checkpoints live.
        state: Saved beside them.
        kept: Newest checkpoints that stay; older ones are removed after this one is safely on disk.
        rank_state: Tensors of this rank alone, such as its share of an average of the weights.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: The disk is full or the folder cannot be written to; earlier checkpoints are untouched.
    """
    final = folder / checkpoint_name(state.step)
    unfinished = folder / f"{_UNFINISHED}-{final.name}"
    on_rank_zero(lambda: shutil.rmtree(unfinished, ignore_errors=True))
    failure: str | None = None
    try:
        with _errors_kept(engine) as errors:
            engine.save_checkpoint(str(folder), tag=unfinished.name, save_latest=False)
        # Random state of layers that draw numbers themselves, such as dropout.
        torch.save({**(rank_state or {}), **_random_state()}, unfinished / f"rng-rank-{dist.get_rank()}.pt")
        failure = errors[0] if errors else None
    except (OSError, RuntimeError) as error:
        failure = str(error)
    raise_on_all_ranks(failure, f"cannot save the checkpoint {final}")
    on_rank_zero(lambda: _publish(unfinished, final, state, kept))
    return final


@contextmanager
def _errors_kept(engine: DeepSpeedEngine) -> Iterator[list[str]]:
    """Keeps this rank's errors while DeepSpeed saves: it would leave the other ranks waiting in its barriers."""
    errors: list[str] = []
    save = engine.checkpoint_engine.save

    def guarded_save(*args: Any, **kwargs: Any) -> Any:
        try:
            return save(*args, **kwargs)
        except Exception as error:  # whatever a full or failing disk raises
            errors.append(f"{type(error).__name__}: {error}")

    engine.checkpoint_engine.save = guarded_save
    try:
        yield errors
    finally:
        engine.checkpoint_engine.save = save


def _publish(unfinished: Path, final: Path, state: TrainerState, kept: int) -> None:
    try:
        write_text(unfinished / STATE_FILE, json.dumps(asdict(state), indent=2))
        sync_tree(unfinished)
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        sync_folder(final.parent)
        for old in find_checkpoints(final.parent)[:-kept]:
            shutil.rmtree(old)
    except OSError as error:
        raise UserError(f"cannot publish the checkpoint {final}: {error}") from error


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def clear_unfinished(folder: Path) -> None:
    """Removes what a run that was killed while saving left behind."""
    for leftover in folder.glob(f"{_UNFINISHED}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


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
    later = [other for other in found if other.name > path.resolve().name]
    if later:
        raise UserError(
            f"training.resume: {folder} holds {later[-1].name}, later than {path.name}; choose another output_dir, or "
            "move the later checkpoints away"
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


def load_checkpoint(
    engine: DeepSpeedEngine, checkpoint: Path, *, expected: TrainerState
) -> tuple[TrainerState, dict[str, Any]]:
    """Restores model and optimizer; every rank must call it.

    Args:
        engine: Freshly started, of the same model.
        checkpoint: A finished checkpoint.
        expected: The present run's world size, configuration and model; step and position are ignored.

    Returns:
        The trainer's state, and what this rank saved for itself.

    Raises:
        UserError: The checkpoint is of another model, world size or configuration, or is damaged.
    """
    state = read_state(checkpoint)
    differing = [
        f"{key} {state.model.get(key)} (now {value})"
        for key, value in expected.model.items()
        if state.model.get(key) != value
    ]
    if differing:
        raise UserError(f"{checkpoint} is of another model: {', '.join(differing)}")
    if state.world_size != expected.world_size:
        raise UserError(
            f"{checkpoint} was saved by {state.world_size} ranks, this run has {expected.world_size}; start as many"
        )
    before, now = _flat(state.config), _flat(expected.config)
    changed = [
        f"{key} {before.get(key)} (now {now.get(key)})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(_CHANGEABLE)
    ]
    if changed:
        raise UserError(
            f"{checkpoint} is of a run with other settings: {', '.join(changed)}; choose another output_dir for a new "
            "run, or go on with the old settings"
        )
    failure: str | None = None
    own: dict[str, Any] = {}
    try:
        path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        if path is None:
            failure = "files are missing"
        else:
            own = torch.load(checkpoint / f"rng-rank-{dist.get_rank()}.pt", map_location="cpu", weights_only=True)
            _set_random_state(own)
    except Exception as error:  # whatever a damaged file makes the unpickler raise
        failure = f"{type(error).__name__}: {error}"
    raise_on_all_ranks(failure, f"cannot load {checkpoint}; remove the folder to use the previous one")
    return state, own


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
