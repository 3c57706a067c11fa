"""Waiting for data: warnings while a batch does not come, and a clear error where a data worker has died."""

from __future__ import annotations

import multiprocessing
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from framer.errors import UserError
from framer.extras import require

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*", re.DOTALL)


@contextmanager
def stall_warnings(seconds: float, *, rank: int, workers: int) -> Iterator[None]:
    """Warns on standard error, again and again, while the body takes longer than ``seconds``.

    Args:
        seconds: Time before the first warning and between warnings; 0 does not warn.
        rank: This rank, for the message.
        workers: Data workers of this rank.
    """
    if seconds == 0:
        yield
        return
    started = time.monotonic()
    over = threading.Event()

    def warn() -> None:
        while not over.wait(seconds):
            waited = time.monotonic() - started
            sys.stderr.write(f"\nrank {rank} has waited {waited:.0f} s for a batch; {_state_of(workers)}\n")

    threading.Thread(target=warn, name="stall warnings", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _state_of(workers: int) -> str:
    if workers == 0:
        return "data.workers is 0: the training process itself reads and degrades the photographs"
    psutil = require("psutil", extra="train")
    alive = []
    for child in multiprocessing.active_children():
        try:
            process = psutil.Process(child.pid)
            alive.append(f"{child.pid} {process.status()}, {process.memory_info().rss / 2**20:.0f} MiB")
        except psutil.Error:  # ended meanwhile
            continue
    states = "; ".join(alive) or "none is alive"
    return (
        f"its {workers} data workers: {states}. Where they sleep, the storage is slow or hangs: copy the photographs "
        "to a local disk; where they run, raise data.workers or choose a lighter data.degradation"
    )


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
        raise UserError(
            f"a data worker has died: {' '.join(found[0].split())} Killed means that the machine ran out of memory "
            "(see dmesg): lower data.workers or training.batch_size; a bus error that /dev/shm is too small. "
            "data.workers=0 shows an error of the worker's own"
        ) from error
