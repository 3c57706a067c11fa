"""The manifest of a checkpoint: size and SHA-256 of every file, to tell a whole checkpoint from a damaged one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from framer.files import write_text

MANIFEST_FILE = "manifest.json"
_FORMAT = 1
_CHUNK = 1 << 22


class FileRecord(NamedTuple):
    """What a file of a checkpoint must be."""

    size: int
    """Bytes."""
    sha256: str


class HashingFile:
    """A file open for writing that hashes what passes through it.

    An error of the disk is kept rather than raised, and what comes after it goes nowhere: writers written in C++ do not
    take exceptions well.

    Args:
        file: Takes the bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.error: OSError | None = None
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: Any) -> int:
        """Appends a buffer of bytes; its size."""
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                self._file.write(view)
            except OSError as error:
                self.error = error
            self._hash.update(view)
            self._size += len(view)
        return len(view)

    def flush(self) -> None:
        """Hands buffered bytes to the system."""
        if self.error is None:
            try:
                self._file.flush()
            except OSError as error:
                self.error = error

    def record(self) -> FileRecord:
        """What was written.

        Raises:
            OSError: Some of it was not.
        """
        if self.error is not None:
            raise self.error
        return FileRecord(self._size, self._hash.hexdigest())


def hash_file(path: Path) -> FileRecord:
    """Reads a file through.

    Raises:
        OSError: It cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(size, digest.hexdigest())


def write_manifest(folder: Path, files: Mapping[str, FileRecord]) -> None:
    """Writes the manifest, durably.

    Args:
        folder: The checkpoint.
        files: By path relative to it.

    Raises:
        UserError: The folder cannot be written to.
    """
    content = {"format": _FORMAT, "files": {name: files[name]._asdict() for name in sorted(files)}}
    write_text(folder / MANIFEST_FILE, json.dumps(content, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, FileRecord]:
    """The files that a checkpoint must have, by path relative to it.

    Raises:
        ValueError: The manifest is missing, unreadable or no manifest; the message begins with the file's name.
    """
    try:
        content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {_FORMAT}")
        files = {name: FileRecord(int(f["size"]), str(f["sha256"])) for name, f in content["files"].items()}
    except FileNotFoundError:
        raise ValueError(
            f"{MANIFEST_FILE} is missing (checkpoints of versions without one cannot be continued)"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST_FILE} is damaged: {type(error).__name__}: {error}") from None
    if not files:
        raise ValueError(f"{MANIFEST_FILE} names no files")
    return files


def find_damage(folder: Path, files: Mapping[str, FileRecord]) -> list[str]:
    """Compares files with what they must be.

    Args:
        folder: The checkpoint.
        files: From :func:`read_manifest`, or a part of it.

    Returns:
        A message for each file that is missing, of another size or of other content.
    """
    damage = []
    for name, expected in files.items():
        try:
            # The size alone finds truncation without reading gigabytes.
            size = (folder / name).stat().st_size
            if size != expected.size:
                damage.append(f"{name} has {size} bytes instead of {expected.size}")
            elif hash_file(folder / name) != expected:
                damage.append(f"{name} does not have the content that was written (SHA-256 differs)")
        except FileNotFoundError:
            damage.append(f"{name} is missing")
        except OSError as error:
            damage.append(f"{name} cannot be read: {error.strerror or error}")
    return damage


def share_files(files: Mapping[str, FileRecord], *, rank: int, world_size: int) -> dict[str, FileRecord]:
    """This rank's share of the files, so that all ranks have about as many bytes to read."""
    shares: list[dict[str, FileRecord]] = [{} for _ in range(world_size)]
    loads = [0] * world_size
    for name in sorted(files, key=lambda name: (-files[name].size, name)):
        least = loads.index(min(loads))
        shares[least][name] = files[name]
        loads[least] += files[name].size
    return shares[rank]


def total_size(files: Sequence[FileRecord]) -> int:
    """Bytes of all files."""
    return sum(file.size for file in files)
