"""Waiting for data: warnings while a batch does not come."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from framer.extras import require


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
