"""What photographs of ``data.evaluation`` must be: large enough for their crops, and none that is trained on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from pathlib import Path
from typing import Final

from framer.config.training import TrainConfig
from framer.data.dataset import check_room
from framer.data.shards.photographs import photograph_hashes
from framer.data.sources import evaluation_files, photograph_files, shard_folder
from framer.errors import UserError
from framer.files import file_sha256
from framer.listing import some_of

_NAMED: Final = 3
_BEGINNING: Final = 2**16


def check_crops(config: TrainConfig) -> None:
    """Checks by their headers that photographs have room for the crops that ``evaluation`` asks for.

    Raises:
        UserError: The folder is missing or empty, or photographs are no images or too small; names each.
    """
    paths, evaluation = evaluation_files(config.data), config.evaluation
    problems = check_room(paths, crop_size=evaluation.crop_size, crops_per_photo=evaluation.crops_per_photo)
    if problems:
        listing = "\n  ".join(problems)
        raise UserError(
            f"{len(problems)} of {len(paths)} evaluation photographs cannot be used (data.evaluation="
            f"{config.data.evaluation}, evaluation.crop_size={evaluation.crop_size}, evaluation.crops_per_photo="
            f"{evaluation.crops_per_photo}); name a folder of larger ones in data.evaluation, or lower the other two:"
            f"\n  {listing}"
        )


def check_apart(config: TrainConfig) -> None:
    """Refuses photographs that are trained on: the same files, or files of the same content.

    Of photographs in ``data.train``, those whose size in bytes and beginning come in ``data.evaluation`` are read;
    shards have the hashes of theirs. Shards of other projects' pairs do not, and are not looked at.

    Raises:
        UserError: A folder is missing or empty, or a photograph is in both; names the first few.
    """
    if config.evaluation.allow_training_photographs:
        return
    folder, evaluation = shard_folder(config.data), evaluation_files(config.data)
    if folder is None:
        both = _in_both(evaluation, photograph_files(config.data))
    else:
        hashes = photograph_hashes(folder)
        both = [str(path) for path in evaluation if hashes and _content(path) in hashes]
    if not both:
        return
    apart = "move them out of data.train" if folder is None else "prepare shards without them"
    raise UserError(
        f"data.evaluation={config.data.evaluation}: {len(both)} of {len(evaluation)} photographs are trained on too, "
        f"for they are in data.train={config.data.train}: {some_of(both, _NAMED)}; {apart}, or name others in "
        "data.evaluation; where a run is meant to learn them by heart, set evaluation.allow_training_photographs=true"
    )


def _in_both(evaluation: list[Path], training: list[Path]) -> list[str]:
    """The evaluation photographs that are among others, with the file that each is the same as."""
    sizes = {path: _size(path) for path in evaluation}
    of_size: dict[int, list[Path]] = {size: [] for size in sizes.values() if size is not None}
    for path in training:
        size = _size(path)
        if size in of_size:
            of_size[size].append(path)
    beginning, content = functools.cache(_beginning), functools.cache(_content)
    both = []
    for path, size in sizes.items():
        others = [] if size is None else of_size[size]
        same = next((other for other in others if path.samefile(other)), None)
        if same is None:
            # Uncompressed crops are all of one size; of most the beginning tells them apart.
            alike = (other for other in others if beginning(path) == beginning(other))
            same = next((other for other in alike if content(path) == content(other) is not None), None)
        if same is not None:
            both.append(str(path) if same == path else f"{path} (there {same})")
    return both


# A file that cannot be read is named where photographs are opened.
def _size(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return None


def _beginning(path: Path) -> bytes | None:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return hashlib.sha256(file.read(_BEGINNING)).digest()
    return None


def _content(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return file_sha256(path)
    return None
