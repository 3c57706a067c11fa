"""Leaving early but in order when a scheduler takes the machine back: SIGTERM and SIGUSR1."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Final

EXIT_PREEMPTED: Final = os.EX_TEMPFAIL
"""Exit status 75 ("try again later"): the run is saved, and the same command continues it."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1)


class PreemptedError(Exception):
    """The run was asked to stop, and has been saved.

    Args:
        number: The signal.
        step: Optimizer steps taken and saved.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}; the same command continues")


class Preemption:
    """Remembers the signals of pre-emption instead of dying from them, as a context manager.

    A handler can do nothing safely while collectives and writes are under way, so it only sets :attr:`pending`; the
    trainer looks at it where all ranks can agree. A run that leaves for a signal ignores later ones until its end:
    launchers often send one to a process and again to its group.
    """

    def __init__(self) -> None:
        self.pending = 0
        """Number of the signal that came last; 0: none."""
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():  # signals can be handled nowhere else
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        leaving = isinstance(error, PreemptedError)
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if leaving else handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.pending = number
