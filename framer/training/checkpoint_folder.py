"""Where checkpoints lie and what they are called."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from framer.training.manifest import read_manifest, total_size
from framer.training.trainer_state import read_state

_NAME = re.compile(r"step-(\d{8})")
UNFINISHED = ".unfinished"
"""Beginning of the name of what is being written or removed."""


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after ``step`` optimizer steps."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Optimizer steps after which a checkpoint was saved, by its name, or by its state where it was renamed."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else read_state(checkpoint).step


def find_checkpoints(folder: Path) -> list[Path]:
    """Published checkpoints in ``folder``, oldest first, damaged ones among them."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: path.name)


def clear_unfinished(folder: Path) -> None:
    """Removes what a run that was killed while saving left behind."""
    for leftover in folder.glob(f"{UNFINISHED}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def put_aside(checkpoint: Path) -> Path:
    """Renames a checkpoint to be removed, if it exists: a kill half-way must not leave one that looks damaged."""
    aside = checkpoint.with_name(f"{UNFINISHED}-removed-{checkpoint.name}")
    if checkpoint.exists():
        checkpoint.rename(aside)
    return aside


def size_of_newest(folder: Path) -> int:
    """Bytes of the newest checkpoint, by its manifest; 0 where there is none or it cannot be read."""
    found = find_checkpoints(folder)
    try:
        return total_size(list(read_manifest(found[-1]).values())) if found else 0
    except ValueError:
        return 0
