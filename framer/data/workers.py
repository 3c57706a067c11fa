"""Processes that make samples beside the one that uses them: what they ignore, and how their errors reach the user."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch.utils.data import DataLoader

from framer.errors import UserError

Item = TypeVar("Item")

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*", re.DOTALL)
_WHY = (
    "Killed means that the machine ran out of memory (see dmesg): lower data.workers or training.batch_size; a bus "
    "error that /dev/shm is too small. data.workers=0 shows an error of the worker's own"
)


def loaded(loader: DataLoader[Item]) -> Iterator[Item]:
    """What a loader yields, with the errors of its workers as one message.

    Raises:
        UserError: A sample cannot be made, or a worker process was killed.
    """
    try:
        with dead_workers_named():
            yield from loader
    except (ConnectionError, EOFError) as error:  # it died while a batch was being handed over
        raise UserError(f"a data worker has died: {str(error) or type(error).__name__}. {_WHY}") from error
    except UserError as error:
        # A worker wraps its error's message in its traceback, whose last line holds the message.
        lines = str(error).strip().splitlines()
        if len(lines) == 1:
            raise
        raise UserError(lines[-1].partition(": ")[2]) from None


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Turns torch's error about a data worker that has died, which may surface anywhere, into advice.

    Raises:
        UserError: A data worker has died.
    """
    try:
        yield
    except RuntimeError as error:
        found = _DEAD_WORKER.search(str(error))
        if found is None:
            raise
        cause = " ".join(found[0].split()).rstrip(".")
        raise UserError(f"a data worker has died: {cause}. {_WHY}") from error


def leave_signals_to_parent(worker: int) -> None:
    """Makes a process deaf to what terminals, schedulers and launchers send to all processes of a run.

    A ``worker_init_fn``. The parent can still end it: multiprocessing sends SIGTERM to workers that are left at exit,
    and waits for them.

    Args:
        worker: Its number, which does not matter.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, name="sigterm", daemon=True).start()


def _end_with_parent() -> None:
    # Waiting for a signal, unlike handling it, tells who sent it.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
