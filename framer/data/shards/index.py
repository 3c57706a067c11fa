"""Where each sample's files lie in a shard, so that any sample is read without the others."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from framer.errors import UserError

HR, LR, META, LATENTS = "hr.png", "lr.png", "json", "latents.safetensors"
MEMBERS: Final = (HR, META, LATENTS, LR)
"""The files that a sample can have, in the order of the tar file, each named ``<key>.<member>``."""

Offsets = npt.NDArray[np.int64]
"""``int64 [samples, 1 + 2 * members]``: the key as a number, then offset and size of each member in bytes."""


class Span(NamedTuple):
    """A range of bytes in a tar file."""

    offset: int
    size: int


def members_of(*, latents: bool) -> tuple[str, ...]:
    """The files of each sample of a folder with or without latents, in the order of the tar file."""
    return tuple(member for member in MEMBERS if latents or member != LATENTS)


def sample_key(number: int) -> str:
    """The key of the sample with this number in the stream that the shards were made from."""
    return f"{number:09d}"


def index_tar(path: Path, members: Sequence[str]) -> Offsets:
    """Finds the samples of a tar file.

    WebDataset reads tar files from front to back alone, and no longer ships its indexed reader (``wids``). Python's
    ``tarfile`` gives the offsets; they are kept in a file, because finding them takes a read per member.

    Args:
        path: The tar file.
        members: The files of each sample, see `members_of`.

    Raises:
        UserError: The tar file is damaged, or its members are not those of samples in this layout.
    """
    rows: list[list[int]] = []
    try:
        with tarfile.open(path, "r:") as tar:
            spans = [(member.name, Span(member.offset_data, member.size)) for member in tar]
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not a complete tar file: {error}") from None
    for first in range(0, len(spans), len(members)):
        group = spans[first : first + len(members)]
        key = group[0][0].partition(".")[0]
        if [name for name, _ in group] != [f"{key}.{member}" for member in members] or not key.isdecimal():
            raise UserError(
                f"{path}: sample {key}: expected the files {', '.join(members)}, got {[n for n, _ in group]}"
            )
        rows.append([int(key), *(number for _, span in group for number in span)])
    return np.array(rows, dtype=np.int64).reshape(-1, 1 + 2 * len(members))


def index_bytes(offsets: Offsets) -> bytes:
    """The content of an index file."""
    buffer = io.BytesIO()
    np.save(buffer, offsets, allow_pickle=False)
    return buffer.getvalue()


def open_index(path: Path, *, samples: int, members: Sequence[str]) -> Offsets:
    """Maps an index file into memory.

    Args:
        path: The file.
        samples: Number of samples that it should have.
        members: The files of each sample, see `members_of`.

    Raises:
        UserError: It is missing, damaged, or has another number of samples.
    """
    try:
        offsets: Offsets = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if offsets.dtype != np.int64 or offsets.shape != (samples, 1 + 2 * len(members)):
        raise UserError(
            f"{path}: {offsets.dtype} {list(offsets.shape)} is not the index of {samples} samples of {len(members)} "
            "files"
        )
    return offsets


def spans_of(row: Offsets, members: Sequence[str]) -> dict[str, Span]:
    """The members of one row of an index."""
    numbers = [int(number) for number in row[1:]]
    return {member: Span(*numbers[2 * i : 2 * i + 2]) for i, member in enumerate(members)}
