"""Which checkpoint a run goes on from: the newest one that is whole."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from framer.errors import UserError
from framer.training.checkpoint_folder import checkpoint_name, find_checkpoints, step_of
from framer.training.manifest import FileRecord, find_damage, read_manifest, share_files
from framer.training.ranks import gather_objects, on_rank_zero
from framer.training.trainer_state import read_state

logger = logging.getLogger(__name__)

_DAMAGED = "damaged"


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
    step = step_of(path)
    later = [other for other in found if step_of(other) > step]
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
