"""Small photographs and shards made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from framer.data.dataset import RealISRDataset
from framer.data.images import write_png
from framer.data.shards.manifest import ShardManifest
from framer.data.shards.stream_pairs import StreamPairs
from framer.data.shards.writer import write_shards

BUCKETS = [(32, 32), (24, 40)]
SHAPES = [(64, 60), (50, 90), (70, 70), (48, 100), (60, 61)]


def photographs(folder: Path) -> list[Path]:
    """Five photographs of noise, three of them nearly square."""
    paths = []
    for seed, shape in enumerate(SHAPES):
        paths.append(folder / f"photo{seed}.png")
        write_png(paths[-1], np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8))
    return paths


def dataset_of(paths: list[Path], **options: Any) -> RealISRDataset:
    """The photographs in two buckets."""
    return RealISRDataset(paths, **({"crop_size": 32, "buckets": BUCKETS, "seed": 3} | options))


def make_shards(dataset: RealISRDataset, folder: Path, **options: Any) -> ShardManifest:
    """23 samples in several small shards."""
    settings = {"crop_size": 32, "samples": 23, "shard_size": 15_000, "workers": 0}
    settings |= options
    return write_shards(StreamPairs(dataset, samples=settings.pop("samples")), folder, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
