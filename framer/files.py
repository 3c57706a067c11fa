"""Writing files so that a crash leaves the old content or the new, never half of it; hashes; checks of folders."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

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


def check_writable(folder: Path, *, option: str = "--output") -> None:
    """Makes and removes a file in a folder, so that a wrong output is told before long work begins.

    Args:
        folder: Where output will go; it and missing parents are made, and removed again.
        option: What the user calls it.

    Raises:
        UserError: The folder is a file, or cannot be made or written to.
    """
    missing: list[Path] = []
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{option} {folder} is a file; give a folder")
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        raise UserError(f"{option}: cannot write to {folder}: {error.strerror or error}") from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # it was not made after all, or something else was put into it
                path.rmdir()


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


def read_json_object(path: Path, *, expected: str, name: str | None = None) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        expected: What the message says should have been there, where the file is missing.
        name: The setting or option that named the file, which messages begin with.

    Raises:
        UserError: The file is missing or damaged, or holds no object.
    """
    head = "" if name is None else f"{name}: "
    if not path.is_file():
        raise UserError(f"{head}{path} not found; expected {expected}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{head}{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{head}{path} is damaged: expected an object, got {type(content).__name__}")
    return content
