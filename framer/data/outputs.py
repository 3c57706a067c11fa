"""Keeping what is written apart from the photographs that are read, and from what another process writes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from framer.errors import UserError
from framer.files import writing

logger = logging.getLogger(__name__)

LOCK_FILE: Final = ".framer.lock"
"""In a folder that a process writes into; gone when it is done."""

_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_POLL_SECONDS: Final = 0.1

_held: dict[Path, int] = {}


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies below it, links followed; neither has to exist."""
    return path.resolve().is_relative_to(folder.resolve())


def check_apart(option: str, folder: Path, photographs: Iterable[Path], root: Path | None) -> None:
    """Refuses a folder where photographs would lie among what is written.

    Args:
        option: Names the folder in messages.
        folder: What is written into.
        photographs: The files that are read.
        root: The folder that was searched for them; None where they lie in no common one.

    Raises:
        UserError: ``folder`` is ``root`` or lies in it, or one of the photographs lies in ``folder``.
    """
    if root is not None and lies_in(folder, root):
        raise UserError(f"{option} {folder} lies in the folder of the photographs, {root}; give a folder outside it")
    target = folder.resolve()
    read = [*photographs, *([] if root is None else [root])]
    inside = next((path for path in read if path.resolve().is_relative_to(target)), None)
    if inside is not None:
        raise UserError(f"{option} {folder} holds what the photographs are read from, {inside}; give another folder")


@contextlib.contextmanager
def sole_writer(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Makes a folder if needed, and lets no other process that asks for the same write into it meanwhile.

    The system releases the lock of a process that ends, however it ends. A folder that was made here and stayed empty
    is removed at the end. In one process, calls for the same folder may be nested.

    Args:
        folder: What is written into.
        patience: Seconds to wait for a process that is about to end, such as one that was killed just now.

    Raises:
        UserError: Another process writes into the folder, it is a file, or it cannot be written to.
    """
    place = folder.resolve()
    if place in _held:
        yield
        return
    if place.exists() and not place.is_dir():
        raise UserError(f"{folder} is a file; give a folder")
    made = [parent for parent in (place, *place.parents) if not parent.exists()]
    with writing(folder):
        place.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder, place / LOCK_FILE, patience)
    _held[place] = lock
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # While it is still locked, so that nobody else can have locked this very file.
            (place / LOCK_FILE).unlink(missing_ok=True)
        os.close(_held.pop(place))
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()


def _locked(folder: Path, path: Path, patience: float) -> int:
    give_up = time.monotonic() + patience
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, path):
                return lock
        except BlockingIOError:
            os.close(lock)
            if time.monotonic() < give_up:
                time.sleep(_POLL_SECONDS)
                continue
            raise UserError(
                f"another process is writing into {folder}; wait until it has ended, or give another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(lock)
                raise
            logger.warning(
                "%s: its file system has no locks (%s); let no second process write into it", folder, error.strerror
            )
            return lock
        # The process that had it removed the file after it was opened here.
        os.close(lock)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _close_in_child() -> None:
    # A child that outlives its killed parent for a moment, such as a worker that loads data, would keep the lock.
    for lock in _held.values():
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
