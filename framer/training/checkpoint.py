"""Checkpoints: written aside, synced, then published under their final name; found, verified and loaded again."""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from framer.config.loading import build_config
from framer.config.training import TrainConfig, TrainingConfig
from framer.errors import ConfigError, UserError
from framer.files import sync_folder, sync_tree, write_text
from framer.training.checkpoint_writer import CheckpointWriter, saving_through
from framer.training.manifest import (
    FileRecord,
    find_damage,
    hash_file,
    read_manifest,
    share_files,
    total_size,
    write_manifest,
)
from framer.training.ranks import gather_objects, on_rank_zero, raise_on_all_ranks
from framer.training.shares import EMA, rank_state_file, share_averages, whole_averages
from framer.training.universal import load_universal

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
_RANDOM = "random"
_NAME = re.compile(r"step-(\d{8})")
_UNFINISHED = ".unfinished"
_DAMAGED = "damaged"
# What a continued run may change; anything else would make it another run under the same name.
_CHANGEABLE = (
    "output_dir",
    "evaluation.",
    "health.",
    "data.evaluation",
    "data.workers",
    "training.max_steps",
    "training.checkpoint_",
    "training.checkpoints_kept",
    "training.sample_steps",
    "training.resume",
    "trackers.",
    "distributed.",
    "training.export_dtype",
    "training.activation_checkpointing",
)
# What another number of ranks may change too, as long as an optimizer step takes as many samples.
_CHANGEABLE_WITH_RANKS = ("training.batch_size", "training.gradient_accumulation_steps")


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

    @property
    def pass_samples(self) -> int:
        """Samples that all ranks together take in a forward pass."""
        return int(self.config["training"]["batch_size"]) * self.world_size

    @property
    def step_samples(self) -> int:
        """Samples that all ranks together take in an optimizer step."""
        return self.pass_samples * int(self.config["training"]["gradient_accumulation_steps"])


class LoadedCheckpoint(NamedTuple):
    """What a checkpoint held beside model, optimizer and random state, which are already restored."""

    state: TrainerState
    """Where the run goes on; the position in the stream is that of the present number of ranks."""
    rank_state: dict[str, Any]
    """What the caller saved on this rank."""


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after ``step`` optimizer steps."""
    return f"step-{step:08d}"


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
    def in_flight(self) -> bool:
        """Whether a checkpoint is begun and not published yet; the same on every rank."""
        return self._writer is not None

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
        return self._folder / f"{_UNFINISHED}-{checkpoint_name(state.step)}"

    def _check_space(self, unfinished: Path) -> None:
        shutil.rmtree(unfinished, ignore_errors=True)
        needed = _size_of_newest(self._folder)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise UserError(
                f"cannot save the checkpoint {unfinished.name.removeprefix(f'{_UNFINISHED}-')}: the one before takes "
                f"{_megabytes(needed)}, and {self._folder} has {_megabytes(free)} left; free some space or lower "
                "training.checkpoints_kept, and run the same command again"
            )

    def _publish(self, state: TrainerState, files: dict[str, FileRecord]) -> None:
        final, unfinished = self._folder / checkpoint_name(state.step), self._unfinished(state)
        try:
            write_text(unfinished / STATE_FILE, json.dumps(asdict(state), indent=2))
            write_manifest(unfinished, files | {STATE_FILE: hash_file(unfinished / STATE_FILE)})
            sync_tree(unfinished)
            aside = _put_aside(final)
            unfinished.rename(final)
            sync_folder(self._folder)
            shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            raise UserError(f"cannot publish the checkpoint {final}: {error}") from error
        every = self._settings.checkpoint_keep_every
        for old in find_checkpoints(self._folder)[: -self._settings.checkpoints_kept]:
            if not (every and _step(old) % every == 0):
                shutil.rmtree(_put_aside(old), ignore_errors=True)


def _put_aside(checkpoint: Path) -> Path:
    """Renames a checkpoint to be removed, if it exists: a kill half-way must not leave one that looks damaged."""
    aside = checkpoint.with_name(f"{_UNFINISHED}-removed-{checkpoint.name}")
    if checkpoint.exists():
        checkpoint.rename(aside)
    return aside


def _size_of_newest(folder: Path) -> int:
    found = find_checkpoints(folder)
    try:
        return total_size(list(read_manifest(found[-1]).values())) if found else 0
    except ValueError:
        return 0


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


def clear_unfinished(folder: Path) -> None:
    """Removes what a run that was killed while saving left behind."""
    for leftover in folder.glob(f"{_UNFINISHED}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def find_checkpoints(folder: Path) -> list[Path]:
    """Published checkpoints in ``folder``, oldest first, damaged ones among them."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: path.name)


def _step(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else read_state(checkpoint).step


def choose_checkpoint(resume: str, folder: Path, *, set_aside: bool = True) -> Path | None:
    """The checkpoint that ``training.resume`` means, verified, or None to start anew; every rank must call it.

    With ``auto``, a damaged checkpoint is reported and renamed to ``damaged-...``, and the one before it taken.

    Args:
        resume: ``auto``, ``never`` or a path.
        folder: The run's checkpoints.
        set_aside: Whether damaged checkpoints are renamed.

    Raises:
        UserError: The path is not a whole checkpoint, no checkpoint of the run is, or ``never`` would overwrite a run's
            checkpoints.
    """
    found = on_rank_zero(lambda: _candidates(resume, folder))
    damaged: dict[Path, list[str]] = {}
    for path in found:
        damage = verify_checkpoint(path)
        if not damage:
            on_rank_zero(lambda: _tell_damage(damaged, path, set_aside=set_aside))  # noqa: B023 (called at once)
            return path
        damaged[path] = damage
    if not damaged:
        return None
    described = "; ".join(f"{path}: {', '.join(damage)}" for path, damage in damaged.items())
    if resume not in ("auto", "never") and Path(resume) in damaged:
        raise UserError(f"training.resume: the checkpoint is damaged: {described}")
    raise UserError(
        f"no checkpoint of this run is whole: {described}. Nothing was changed. Put a good copy back, or start "
        "anew with training.resume=never and another output_dir"
    )


def _candidates(resume: str, folder: Path) -> list[Path]:
    """Checkpoints to try, the first one first."""
    found = find_checkpoints(folder)
    if resume == "auto":
        aside = sorted(folder.glob(f"{_DAMAGED}-step-*"))
        if aside and not found:
            raise UserError(
                f"{folder} holds only checkpoints that were set aside as damaged, such as {aside[-1].name}; put a good "
                "copy back, or start anew with training.resume=never and another output_dir"
            )
        return found[::-1]
    if resume == "never":
        if found:
            raise UserError(
                f"training.resume=never, but {folder} holds {found[-1].name}; choose another output_dir, "
                "remove the folder, or continue with training.resume=auto"
            )
        return []
    path = Path(resume)
    if not path.is_dir():
        raise UserError(
            f"training.resume: {path} is not a checkpoint; expected auto, never, or a folder such as "
            f"{folder / checkpoint_name(100)}"
        )
    step = _step(path)
    later = [other for other in found if _step(other) > step]
    if not later:
        return [path]
    with suppress(UserError):
        # The same command, run before, started from the path and got further.
        if read_state(later[-1]).config["training"]["resume"] == resume:
            return [*later[::-1], path]
    raise UserError(
        f"training.resume: {folder} holds {later[-1].name}, later than {path.name}; choose another output_dir, or "
        "move the later checkpoints away"
    )


def verify_checkpoint(checkpoint: Path) -> list[str]:
    """Compares a checkpoint's files with its manifest, each rank some of them; every rank must call it.

    Returns:
        What is wrong, the same on every rank; empty for a whole checkpoint.
    """

    def read() -> tuple[dict[str, FileRecord], list[str]]:
        try:
            files = read_manifest(checkpoint)
            read_state(checkpoint)
        except (ValueError, UserError) as error:
            return {}, [str(error)]
        return files, []

    files, damage = on_rank_zero(read)
    share = share_files(files, rank=dist.get_rank(), world_size=dist.get_world_size())
    return damage + [message for part in gather_objects(find_damage(checkpoint, share)) for message in part]


def _tell_damage(damaged: Mapping[Path, list[str]], used: Path, *, set_aside: bool) -> None:
    for path, damage in damaged.items():
        if not set_aside:
            logger.warning("the checkpoint %s is damaged: %s. Training goes on from %s", path, ", ".join(damage), used)
            continue
        aside = _free_name(path.with_name(f"{_DAMAGED}-{path.name}"))
        try:
            path.rename(aside)
        except OSError as error:
            raise UserError(f"{path} is damaged ({', '.join(damage)}) and cannot be renamed: {error}") from error
        logger.warning(
            "the checkpoint %s is damaged: %s. It was renamed to %s and is kept; training continues from %s",
            path,
            ", ".join(damage),
            aside.name,
            used.name,
        )


def _free_name(path: Path) -> Path:
    taken = 1
    candidate = path
    while candidate.exists():
        taken += 1
        candidate = path.with_name(f"{path.name}-{taken}")
    return candidate


def read_state(checkpoint: Path) -> TrainerState:
    """Reads the trainer's state.

    Raises:
        UserError: The file is missing or damaged.
    """
    path = checkpoint / STATE_FILE
    try:
        return TrainerState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{STATE_FILE} in {checkpoint} is damaged: {reason}") from None


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
    _check_same_run(checkpoint, state, expected)
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


def _check_same_run(checkpoint: Path, state: TrainerState, expected: TrainerState) -> None:
    differing = [
        f"{key} {state.model.get(key)} (now {value})"
        for key, value in expected.model.items()
        if state.model.get(key) != value
    ]
    if differing:
        raise UserError(f"{checkpoint} is of another model: {', '.join(differing)}")
    changeable: tuple[str, ...] = _CHANGEABLE
    if state.world_size != expected.world_size:
        if state.step_samples != expected.step_samples:
            raise UserError(
                f"{checkpoint} was saved by {state.world_size} ranks, which took {state.step_samples} samples a step; "
                f"this run has {expected.world_size} and would take {expected.step_samples}. Set training.batch_size "
                f"and training.gradient_accumulation_steps so that they make {state.step_samples}, or start as many "
                "ranks"
            )
        if expected.config["data"]["buckets"] and state.pass_samples != expected.pass_samples:
            raise UserError(
                f"{checkpoint} was saved by ranks that together took {state.pass_samples} samples a forward pass; this "
                f"run's would take {expected.pass_samples}, and data.buckets would give it other samples. Set "
                f"training.batch_size so that it makes {state.pass_samples}, or start as many ranks"
            )
        changeable += _CHANGEABLE_WITH_RANKS
    before, now = _flat(_with_new_settings(state.config)), _flat(expected.config)
    changed = [
        f"{key} {before.get(key)} (now {now.get(key)})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(changeable)
    ]
    if changed:
        raise UserError(
            f"{checkpoint} is of a run with other settings: {', '.join(changed)}; choose another output_dir for a new "
            "run, or go on with the old settings"
        )


def _with_new_settings(config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration with the defaults of settings that are younger than it."""
    try:
        return build_config(TrainConfig, config, source="of a checkpoint").model_dump(mode="json")
    except ConfigError:  # a setting has gone since; it will be named as one that differs
        return config


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
