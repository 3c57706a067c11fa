"""Saving a run: written aside, synced, then published under its final name; and loading it again."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from framer.config.training import TrainingConfig
from framer.errors import UserError
from framer.files import sync_folder, sync_tree, write_text
from framer.training.checkpoint_folder import (
    UNFINISHED,
    checkpoint_name,
    find_checkpoints,
    put_aside,
    size_of_newest,
    step_of,
)
from framer.training.checkpoint_writer import CheckpointWriter, saving_through
from framer.training.manifest import FileRecord, hash_file, write_manifest
from framer.training.ranks import gather_objects, on_rank_zero, raise_on_all_ranks
from framer.training.shares import EMA, rank_state_file, share_averages, whole_averages
from framer.training.trainer_state import STATE_FILE, TrainerState, check_same_run, read_state
from framer.training.universal import load_universal

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_RANDOM = "random"


class LoadedCheckpoint(NamedTuple):
    """What a checkpoint held beside model, optimizer and random state, which are already restored."""

    state: TrainerState
    """Where the run goes on; the position in the stream is that of the present number of ranks."""
    rank_state: dict[str, Any]
    """What the caller saved on this rank."""


class Checkpointer:
    """Saves a run's checkpoints, one at a time. Every rank must make the same calls.

    Args:
        folder: Where checkpoints live.
        settings: Whether to write in the background, and which checkpoints stay.
    """

    def __init__(self, folder: Path, settings: TrainingConfig) -> None:
        self._folder = folder
        self._settings = settings
        self._writer: CheckpointWriter | None = None
        self._state: TrainerState | None = None

    @property
    def busy(self) -> bool:
        """Whether this rank still writes."""
        return self._writer is not None and self._writer.busy

    def save(
        self, engine: DeepSpeedEngine, state: TrainerState, *, rank_state: Mapping[str, Any] | None = None
    ) -> None:
        """Saves; in the background, only begins to, after waiting for the one before.

        Args:
            engine: Model and optimizer.
            state: Saved beside them.
            rank_state: Tensors and plain values of this rank alone, such as its share of an average of the weights.

        Raises:
            UserError: The disk is full or the folder cannot be written to; earlier checkpoints are untouched.
        """
        self.finish()
        unfinished = self._unfinished(state)
        on_rank_zero(lambda: self._check_space(unfinished))
        writer = CheckpointWriter(unfinished, background=self._settings.checkpoint_async)
        writer.make_folder(str(unfinished), exist_ok=True)
        with saving_through(engine, writer, unfinished):
            engine.save_checkpoint(str(self._folder), tag=unfinished.name, save_latest=False)
        rank = dist.get_rank()
        writer.add(rank_state_file(rank), {**(rank_state or {}), _RANDOM: _random_state()})
        for path in sorted((unfinished / "offloaded_tensors" / f"rank{rank:02d}").rglob("*")):
            if path.is_file():
                writer.add_present(path.relative_to(unfinished).as_posix())
        writer.start()
        self._writer, self._state = writer, state
        if not self._settings.checkpoint_async:
            self.finish()

    def finish(self) -> None:
        """Waits for the checkpoint in flight, if there is one, and publishes it.

        Raises:
            UserError: It could not be written; earlier checkpoints are untouched.
        """
        if self._writer is None or self._state is None:
            return
        writer, state = self._writer, self._state
        self._writer = self._state = None
        final = self._folder / checkpoint_name(state.step)
        records, failure = writer.result()
        parts = gather_objects((records, failure))
        try:
            raise_on_all_ranks(failure, f"cannot save the checkpoint {final}")
            files = {name: record for part, _ in parts for name, record in part.items()}
            on_rank_zero(lambda: self._publish(state, files))
        except UserError:
            # Half a checkpoint is of no use, and the disk may be full because of it.
            if dist.get_rank() == 0:
                shutil.rmtree(self._unfinished(state), ignore_errors=True)
            raise

    def _unfinished(self, state: TrainerState) -> Path:
        return self._folder / f"{UNFINISHED}-{checkpoint_name(state.step)}"

    def _check_space(self, unfinished: Path) -> None:
        shutil.rmtree(unfinished, ignore_errors=True)
        needed = size_of_newest(self._folder)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise UserError(
                f"cannot save the checkpoint {unfinished.name.removeprefix(f'{UNFINISHED}-')}: the one before takes "
                f"{_megabytes(needed)}, and {self._folder} has {_megabytes(free)} left; free some space or lower "
                "training.checkpoints_kept, and run the same command again"
            )

    def _publish(self, state: TrainerState, files: dict[str, FileRecord]) -> None:
        final, unfinished = self._folder / checkpoint_name(state.step), self._unfinished(state)
        try:
            write_text(unfinished / STATE_FILE, json.dumps(asdict(state), indent=2))
            write_manifest(unfinished, files | {STATE_FILE: hash_file(unfinished / STATE_FILE)})
            sync_tree(unfinished)
            aside = put_aside(final)
            unfinished.rename(final)
            sync_folder(self._folder)
            shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            raise UserError(f"cannot publish the checkpoint {final}: {error}") from error
        self._remove_old()

    def remove_old(self) -> None:
        """Removes what the settings do not keep; every rank must call it.

        Saving does the same; a run that was killed between publishing and removing, or whose settings changed, has more
        of them.
        """
        on_rank_zero(self._remove_old)

    def _remove_old(self) -> None:
        kept, every = self._settings.checkpoints_kept, self._settings.checkpoint_keep_every
        for old in find_checkpoints(self._folder)[:-kept]:
            if not (every and step_of(old) % every == 0):
                shutil.rmtree(put_aside(old), ignore_errors=True)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _random_state() -> dict[str, Any]:
    # For layers that draw numbers themselves, such as dropout, and whatever else draws from global generators.
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (the global generator is the one that others draw from)
    state = {
        "cpu": torch.get_rng_state(),
        "python": [version, list(words), gauss],
        "numpy": [str(name), [int(key) for key in keys], *rest],
    }
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def load_checkpoint(
    engine: DeepSpeedEngine, checkpoint: Path, *, expected: TrainerState, scratch: Path
) -> LoadedCheckpoint:
    """Restores model, optimizer and random state; every rank must call it.

    Args:
        engine: Freshly started, of the same model.
        checkpoint: A verified checkpoint.
        expected: The present run's world size, configuration and model; step and position are ignored.
        scratch: Folder on a disk that all ranks see, with room for a conversion to another number of ranks.

    Raises:
        UserError: The checkpoint is of another model or configuration, or cannot be loaded, or not by this number of
            ranks. With another number, each rank keeps the random state that it was started with.
    """
    state = read_state(checkpoint)
    check_same_run(checkpoint, state, expected)
    other_ranks = state.world_size != expected.world_size
    rank_state: dict[str, Any] = {}
    failure: str | None = None
    try:
        source = 0 if other_ranks else dist.get_rank()
        rank_state = torch.load(checkpoint / rank_state_file(source), map_location="cpu", weights_only=True)
        random_state = rank_state.pop(_RANDOM)
        if not other_ranks:
            _set_random_state(random_state)
        elif unknown := sorted(rank_state.keys() - {EMA}):
            failure = f"the ranks' {', '.join(unknown)} cannot be shared out to another number of ranks"
        elif EMA in rank_state:
            averages = whole_averages(checkpoint, state.world_size)
            rank_state = {EMA: share_averages(engine, rank_state[EMA], averages)}
    except Exception as error:  # whatever an unreadable file makes the unpickler raise
        failure = f"{type(error).__name__}: {error}"
    raise_on_all_ranks(failure, f"cannot load {checkpoint}")
    if other_ranks and engine.zero_optimization():
        load_universal(engine, checkpoint, scratch)
    else:
        failure = _load_engine(engine, checkpoint)
    raise_on_all_ranks(failure, f"cannot load {checkpoint}")
    training = expected.config["training"]
    accumulation = int(training["gradient_accumulation_steps"])
    position = state.step * accumulation if other_ranks else state.micro_steps
    return LoadedCheckpoint(replace(state, micro_steps=position), rank_state)


def _load_engine(engine: DeepSpeedEngine, checkpoint: Path) -> str | None:
    try:
        path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    except Exception as error:  # whatever an unreadable file makes the unpickler raise
        return f"{type(error).__name__}: {error}"
    return None if path is not None else "files are missing"
