"""The training samples, and this rank's batches of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from framer.config.training import TrainConfig
from framer.data.samples import Sample
from framer.data.sources import open_source
from framer.data.stream import SampleSource, StreamDataset, StreamSampler
from framer.data.workers import leave_signals_to_parent, loaded


def build_dataset(config: TrainConfig) -> SampleSource:
    """The photographs or shards that ``data`` describes.

    Raises:
        UserError: The folder is missing or empty, or photographs are broken or smaller than the crop, or shards are
            missing, damaged or made under other settings.
    """
    return open_source(config.data, seed=config.seed)


def stream_batches(
    dataset: SampleSource, config: TrainConfig, *, rank: int, world_size: int, start: int, count: int
) -> Iterator[Sample]:
    """This rank's micro-batches, from micro-step ``start`` on.

    Args:
        dataset: The samples.
        config: Batch size, number of workers, and the seed of the order of buckets.
        rank: This rank.
        world_size: Number of ranks.
        start: Micro-steps already taken.
        count: Micro-steps to come.

    Yields:
        Batches of ``training.batch_size`` samples; each tensor has a leading batch axis. The samples of one micro-step
        on all ranks have one size.

    Raises:
        UserError: A photograph or shard can no longer be read.
    """
    batch_size = config.training.batch_size
    sampler = StreamSampler(batch_size, rank=rank, world_size=world_size, start=start, stop=start + count)
    loader: DataLoader[Sample] = DataLoader(
        StreamDataset(dataset, block=batch_size * world_size, seed=config.seed),
        batch_sampler=sampler,
        num_workers=config.data.workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=leave_signals_to_parent,
        # Without it the loader would draw from the global generator, which a checkpoint restores.
        generator=torch.Generator(),
    )
    yield from loaded(loader)
