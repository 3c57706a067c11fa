"""The endless stream of samples: what each place of it holds, and which of it each rank takes at each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Protocol

from torch.utils.data import Dataset, Sampler

from framer.data.buckets import BucketOrder, CropSize
from framer.data.samples import Sample


class SampleSource(Protocol):
    """Samples in buckets, each of which has an endless stream of its own."""

    @property
    def buckets(self) -> Sequence[CropSize]:
        """The size of each bucket's samples, in pixels."""

    @property
    def bucket_sizes(self) -> Sequence[int]:
        """The number of samples in each bucket, which is the length of its epoch."""

    def sample(self, bucket: int, place: int, index: int) -> Sample:
        """Makes the sample at one place of a bucket's stream; ``index`` is its number in the whole stream."""

    def __len__(self) -> int:
        """The number of samples in all buckets."""


class StreamDataset(Dataset[Sample]):
    """The buckets of a source as one stream, in blocks of one bucket each.

    Args:
        source: The samples.
        block: Samples of one micro-step on all ranks, which are of one bucket.
        seed: Seed of the order of buckets.
    """

    def __init__(self, source: SampleSource, *, block: int, seed: int) -> None:
        self.source = source
        self.order = BucketOrder(source.bucket_sizes, block=block, seed=seed)

    def __getitem__(self, index: int) -> Sample:
        """Makes the sample at place ``index``, any integer from 0 on."""
        return self.source.sample(*self.order.locate(index), index)


class StreamSampler(Sampler[list[int]]):
    """Batch sampler over the sample indices 0, 1, 2, ... of an endless dataset.

    With micro-batches of `batch_size` on each of `world_size` ranks, micro-step ``m`` of rank ``r`` takes the
    `batch_size` indices from ``(m * world_size + r) * batch_size``. So the ranks together take the stream in
    order, without gap or repeat, and two ranks with batch ``b`` see at each micro-step what one rank with
    batch ``2 b`` sees. There is no state to save: a run resumes at micro-step ``m`` with ``start=m``.

    Args:
        batch_size: Samples of one micro-batch on one rank.
        rank: This rank, in ``[0, world_size)``.
        world_size: Number of data-parallel ranks.
        start: First micro-step.
        stop: Micro-step to end before; None for an endless stream.

    Raises:
        ValueError: A count is not positive, `rank` is out of range, or `stop` is before `start`.
    """

    def __init__(self, batch_size: int, rank: int, world_size: int, start: int = 0, stop: int | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, got {world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        if start < 0:
            raise ValueError(f"start must not be negative, got {start}")
        if stop is not None and stop < start:
            raise ValueError(f"stop must not be before start={start}, got {stop}")
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.start = start
        self.stop = stop

    def __iter__(self) -> Iterator[list[int]]:
        steps = count(self.start) if self.stop is None else range(self.start, self.stop)
        for step in steps:
            first = (step * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        if self.stop is None:
            raise TypeError("an endless StreamSampler has no length; give it a stop")
        return self.stop - self.start
