"""Times of steps that are compared: interleaved rounds, medians, and a check that the machine was ours."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

ALLOWED_CORES = 0.1
"""Mean number of cores that other processes may use in a round."""
TICKS = 0.03
"""Seconds below which the operating system's clocks do not tell."""


class Times(NamedTuple):
    """Seconds of every step in every round, and how much of the machine others used.

    Attributes:
        seconds: By step, one number a round.
        other_cores: Mean number of cores that other processes used, one number a round; empty where the operating
            system does not say.
    """

    seconds: dict[str, list[float]]
    other_cores: list[float]

    def median(self, name: str) -> float:
        """Median over the rounds."""
        return statistics.median(self.seconds[name])

    def ratios(self, name: str, over: str) -> list[float]:
        """Ratio of two steps, round by round."""
        return [a / b for a, b in zip(self.seconds[name], self.seconds[over], strict=True)]


def interleaved(
    steps: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1, limit: float = 10.0
) -> Times:
    """Runs all steps once a round, in an order that turns, so that drift meets all alike.

    A round in which other processes used the machine is repeated. Where they never stop, the rounds they disturbed
    least are kept: rounds are chosen by what others used, never by how long they took.

    Args:
        steps: What to run, by name.
        rounds: Rounds to keep.
        warmup: Rounds before the first one.
        limit: Seconds after which no further round is taken beyond ``rounds``.
    """
    names = list(steps)
    for _ in range(warmup):
        for step in steps.values():
            step()
    taken: list[tuple[float, dict[str, float]]] = []
    undisturbed = 0
    begin = time.perf_counter()
    while undisturbed < rounds and (len(taken) < rounds or time.perf_counter() - begin < limit):
        turn = len(taken) % len(names)
        own, busy, start = _own_seconds(), _busy_seconds(), time.perf_counter()
        seconds = {name: timed(steps[name]) for name in (*names[turn:], *names[:turn])}
        elapsed = time.perf_counter() - start
        others = math.nan
        if busy is not None and (after := _busy_seconds()) is not None:
            others = max(0.0, (after - busy) - (_own_seconds() - own))
        undisturbed += not others > ALLOWED_CORES * elapsed + TICKS
        taken.append((others / elapsed, seconds))
    if not any(math.isnan(others) for others, _ in taken):
        taken.sort(key=lambda each: each[0])
    kept = taken[:rounds]
    return Times(
        {name: [seconds[name] for _, seconds in kept] for name in names},
        [others for others, _ in kept if not math.isnan(others)],
    )


def timed(step: Callable[[], object]) -> float:
    """Seconds of one call, the device's work included."""
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Interval(NamedTuple):
    """A median, and an interval that holds the true one."""

    median: float
    low: float
    high: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Median with its distribution-free interval between two order statistics.

    Raises:
        ValueError: There are too few values for the confidence; 0.95 takes 6.
    """
    ordered, count = sorted(values), len(values)
    # The median lies below the k-th order statistic with the probability of fewer than k heads in `count` tosses.
    tails = [2 * sum(math.comb(count, i) for i in range(k)) / 2**count for k in range(1, count // 2 + 1)]
    within = [k for k, tail in enumerate(tails, start=1) if tail <= 1 - confidence]
    if not within:
        raise ValueError(f"{count} values are too few for an interval of confidence {confidence}")
    k = within[-1]
    return Interval(statistics.median(ordered), ordered[k - 1], ordered[count - k])


def _own_seconds() -> float:
    """Processor time of this process and its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _busy_seconds() -> float | None:
    """Processor time of all processes together; None where the operating system does not say."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    except (OSError, IndexError):
        return None
    user, nice, system, _, _, interrupt, soft_interrupt, steal = map(int, fields)
    return (user + nice + system + interrupt + soft_interrupt + steal) / os.sysconf("SC_CLK_TCK")
