"""Writing files so that a crash leaves the old content or the new, never half of it; and hashes of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from framer.errors import UserError

_PARTIAL: Final = ".partial"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tells which file or folder could not be written.

    Raises:
        UserError: The body raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file beside ``path`` to write to; when the body ends, syncs it to disk and renames it over ``path``.

    The file beside has a name of its own each time, so that two processes never write to the same. One that was killed
    leaves it behind, hidden; :func:`remove_partials` removes it.

    Raises:
        OSError: The folder cannot be written to; the old content is untouched.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # a read-only disk refuses this too
            partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Removes what killed processes left of files that :func:`replacing` was writing into a folder.

    Call it only where no other process can be writing into the folder.
    """
    for partial in folder.glob(f".*{_PARTIAL}"):
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes beside ``path``, syncs to disk, then renames over it.

    Raises:
        UserError: The folder cannot be written to; the old content is untouched.
    """
    with writing(path), replacing(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Like :func:`write_bytes`, for UTF-8 text."""
    write_bytes(path, content.encode())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes every file and name below ``folder`` durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)
