"""Processes that make samples beside the one that uses them: what they ignore, and how their errors reach the user."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TypeVar

from torch.utils.data import DataLoader

from framer.errors import UserError

Item = TypeVar("Item")


def loaded(loader: DataLoader[Item]) -> Iterator[Item]:
    """What a loader yields, with the errors of its workers as one message.

    Raises:
        UserError: A sample cannot be made, or a worker process was killed.
    """
    try:
        yield from loader
    except UserError as error:
        # A worker wraps its error's message in its traceback, whose last line holds the message.
        lines = str(error).strip().splitlines()
        if len(lines) == 1:
            raise
        raise UserError(lines[-1].partition(": ")[2]) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise UserError(
            f"a process that makes samples has died, perhaps for lack of memory; try fewer workers ({error})"
        ) from error


def ignore_interrupt(worker: int) -> None:
    """Leaves Ctrl-C, which reaches workers too, to the process that started them; a ``worker_init_fn``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
