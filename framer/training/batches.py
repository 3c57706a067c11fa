"""The training photographs, and this rank's batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from framer.config.training import TrainConfig
from framer.data.dataset import RealISRDataset, Sample
from framer.data.images import find_images
from framer.data.photographs import bundled_photographs
from framer.data.stream import StreamSampler
from framer.errors import UserError
from framer.training.preemption import ignore_in_worker


def build_dataset(config: TrainConfig) -> RealISRDataset:
    """The photographs that ``data`` describes.

    Raises:
        UserError: The folder is missing or empty, or photographs are broken or smaller than the crop.
    """
    data = config.data
    bundled = data.train == "bundled"
    return RealISRDataset(
        bundled_photographs("train") if bundled else find_images(Path(data.train).expanduser()),
        crop_size=data.crop_size,
        scale=data.scale,
        degradation=data.degradation,
        seed=config.seed,
        horizontal_flip=data.horizontal_flip,
        quarter_turns=data.quarter_turns,
        rescale=data.rescale,
        colour_jitter=data.colour_jitter,
        on_broken=data.on_broken,
    )


def stream_batches(
    dataset: RealISRDataset, config: TrainConfig, *, rank: int, world_size: int, start: int, count: int
) -> Iterator[Sample]:
    """This rank's micro-batches, from micro-step ``start`` on.

    Args:
        dataset: The endless stream of samples.
        config: Batch size and number of workers.
        rank: This rank.
        world_size: Number of ranks.
        start: Micro-steps already taken.
        count: Micro-steps to come.

    Yields:
        Batches of ``training.batch_size`` samples; each tensor has a leading batch axis.

    Raises:
        UserError: A photograph can no longer be read.
    """
    sampler = StreamSampler(
        config.training.batch_size, rank=rank, world_size=world_size, start=start, stop=start + count
    )
    loader: DataLoader[Sample] = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=config.data.workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_signals,
        # Without it the loader would draw from the global generator, which a checkpoint restores.
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except UserError as error:
        # A worker wraps its error's message in its traceback, whose last line holds the message.
        lines = str(error).strip().splitlines()
        if len(lines) == 1:
            raise
        raise UserError(lines[-1].partition(": ")[2]) from None


def _ignore_signals(worker: int) -> None:
    # Ctrl-C and a scheduler's signals reach the workers too; the trainer ends them.
    ignore_in_worker()
