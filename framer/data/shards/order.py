"""Shuffling a bucket's shards so that reads stay near each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from framer.seeding import derived_seed

SHUFFLE_WINDOW: Final = 8
"""Shards whose samples are mixed with each other."""

Numbers = npt.NDArray[np.int64]


class _Window(NamedTuple):
    epoch: int
    number: int
    samples: Numbers
    """The samples of the window's shards in their shuffled order; the shards' samples count on from each other."""
    shards: Numbers
    starts: Numbers
    """Number of each shard's first sample in the window."""


class _Epoch(NamedTuple):
    number: int
    shards: Numbers
    ends: Numbers
    """Samples of the epoch up to the end of each window."""


class ShardOrder:
    """The endless stream of one bucket's samples.

    Each epoch visits every sample once: the shards in an order drawn from (seed, epoch), `SHUFFLE_WINDOW` of them at a
    time, whose samples are drawn in an order of their own. So all ranks and workers read from a few shards at a
    time, and with no more shards than that the whole epoch is shuffled.

    Args:
        counts: Number of samples in each shard.
        bucket: The bucket's number, which its draws depend on too.
        seed: Seed of every draw.
        window: Shards whose samples are mixed.
    """

    def __init__(self, counts: Sequence[int], *, bucket: int, seed: int, window: int = SHUFFLE_WINDOW) -> None:
        self._counts = np.array(counts, dtype=np.int64)
        self._total = int(self._counts.sum())
        self._bucket = bucket
        self._seed = seed
        self._window = window
        self._last_epoch: _Epoch | None = None
        self._last_window: _Window | None = None

    def locate(self, place: int) -> tuple[int, int]:
        """Number of the shard, and of the sample in it, at one place of the stream."""
        number, within = divmod(place, self._total)
        epoch = self._epoch(number)
        window_number = int(np.searchsorted(epoch.ends, within, side="right"))
        window = self._shuffled(epoch, window_number)
        start = int(epoch.ends[window_number - 1]) if window_number else 0
        sample = int(window.samples[within - start])
        slot = int(np.searchsorted(window.starts, sample, side="right")) - 1
        return int(window.shards[slot]), sample - int(window.starts[slot])

    def _epoch(self, number: int) -> _Epoch:
        if self._last_epoch is None or self._last_epoch.number != number:
            rng = np.random.default_rng(derived_seed(self._seed, "shards", self._bucket, number))
            shards = rng.permutation(len(self._counts))
            ends = np.cumsum(self._counts[shards])
            last_of_window = np.arange(len(shards)) % self._window == self._window - 1
            last_of_window[-1] = True
            self._last_epoch = _Epoch(number, shards, ends[last_of_window])
        return self._last_epoch

    def _shuffled(self, epoch: _Epoch, number: int) -> _Window:
        last = self._last_window
        if last is None or (last.epoch, last.number) != (epoch.number, number):
            shards = epoch.shards[number * self._window : (number + 1) * self._window]
            counts = self._counts[shards]
            rng = np.random.default_rng(derived_seed(self._seed, "shard window", self._bucket, epoch.number, number))
            samples = rng.permutation(int(counts.sum()))
            last = self._last_window = _Window(epoch.number, number, samples, shards, np.cumsum(counts) - counts)
        return last
