"""Aspect-ratio buckets: which crop size a photograph gets, and which bucket each place of the stream is of."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from framer.seeding import derived_seed

# Phases are fractions with this denominator, so that everything below is computed in integers, without rounding.
_UNITS = 1 << 32


class CropSize(NamedTuple):
    """Height and width of a crop, in pixels."""

    height: int
    width: int


def nearest_bucket(height: int, width: int, buckets: Sequence[CropSize]) -> int:
    """The bucket whose aspect ratio is nearest to that of an image, by the ratio of the two; the first of equals.

    Args:
        height: Height of the image.
        width: Width of the image.
        buckets: At least one crop size.
    """
    distances = [abs(math.log(height * bucket.width / (width * bucket.height))) for bucket in buckets]
    return distances.index(min(distances))


class StreamPlace(NamedTuple):
    """What one place of the stream takes: sample ``place`` of the endless stream of ``bucket``."""

    bucket: int
    place: int


class BucketOrder:
    """The endless streams of several buckets interleaved into one, in blocks of one bucket each.

    Block ``m`` is the places ``m * block`` to ``(m + 1) * block - 1`` of the stream: one micro-step on all ranks, whose
    samples must have one shape. The blocks of each bucket are evenly spaced, at a phase drawn from the seed, with
    a frequency proportional to the bucket's samples: after any number of blocks, each of B buckets has had its share to
    within B blocks. Each bucket's own stream is taken in order, without gap or repeat. All of it is a function of the
    arguments and the place alone; nothing has to be remembered.

    Args:
        sizes: Number of samples of each bucket; a bucket of 0 samples gets no block.
        block: Samples of one micro-step on all ranks.
        seed: Seed of the phases.

    Raises:
        ValueError: `block` is not positive, a size is negative, or all are 0.
    """

    def __init__(self, sizes: Sequence[int], *, block: int, seed: int) -> None:
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        if min(sizes, default=0) < 0 or not any(sizes):
            raise ValueError(f"sizes must not be negative and not all 0, got {list(sizes)}")
        self.block = block
        self._sizes = {bucket: int(size) for bucket, size in enumerate(sizes) if size}
        phases = np.random.default_rng(derived_seed(seed, "bucket phases")).integers(_UNITS, size=len(sizes))
        self._phases = {bucket: int(phases[bucket]) for bucket in self._sizes}
        self._last: tuple[int, int, int] | None = None

    def block_of(self, bucket: int, turn: int) -> int:
        """The block in which a bucket has its turn number ``turn``, counted from 0.

        Raises:
            KeyError: The bucket has no samples.
        """
        # Turn k of a bucket with n samples and phase p is due at (k + p) / n; a turn's block is the number of turns of
        # all buckets that are due before it. Both sides of each comparison are multiplied by both n and by _UNITS.
        size, due = self._sizes[bucket], turn * _UNITS + self._phases[bucket]
        before = turn
        for other, other_size in self._sizes.items():
            if other != bucket:
                bound = due * other_size - self._phases[other] * size
                whole, rest = divmod(bound, _UNITS * size)
                before += max(0, whole + (rest > 0 or other < bucket))
        return before

    def locate(self, index: int) -> StreamPlace:
        """The bucket that place ``index`` of the stream is of, and the place in that bucket's own stream.

        Raises:
            IndexError: ``index`` is negative.
        """
        if index < 0:
            raise IndexError(f"sample indices start at 0, got {index}")
        block, offset = divmod(index, self.block)
        if self._last is None or self._last[0] != block:
            self._last = (block, *self._turn_in(block))
        _, bucket, turn = self._last
        return StreamPlace(bucket, turn * self.block + offset)

    def _turn_in(self, block: int) -> tuple[int, int]:
        for bucket in self._sizes:
            # A bucket's turn k comes in block k at the earliest, and later turns come in later blocks.
            turn = bisect_left(range(block + 1), block, key=partial(self.block_of, bucket))
            if turn <= block and self.block_of(bucket, turn) == block:
                return bucket, turn
        raise AssertionError(f"no bucket has block {block}")
