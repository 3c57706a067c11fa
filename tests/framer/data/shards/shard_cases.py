"""Small photographs and shards made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from framer.data.dataset import RealISRDataset
from framer.data.images import write_png
from framer.data.shards.manifest import ShardManifest
from framer.data.shards.stream_pairs import PhotographTexts, StreamPairs
from framer.data.shards.writer import write_shards
from framer.models.text import TextEmbeddings, TextSizes
from framer.models.text_encoders import TextEncoder

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


def make_shards(
    dataset: RealISRDataset, folder: Path, *, texts: PhotographTexts | None = None, **options: Any
) -> ShardManifest:
    """23 samples in several small shards."""
    settings = {"crop_size": 32, "samples": 23, "shard_size": 15_000, "workers": 0}
    settings |= options
    return write_shards(StreamPairs(dataset, samples=settings.pop("samples"), texts=texts), folder, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class NumberedTexts(TextEncoder):
    """Embeds a text as random numbers that depend on it alone: five tokens."""

    def __init__(self, *, pooled: int | None = None) -> None:
        self._pooled = pooled

    @property
    def identity(self) -> str:
        return f"numbers, pooled {self._pooled}"

    @property
    def sizes(self) -> TextSizes:
        return TextSizes(8, self._pooled)

    @property
    def tokens(self) -> int:
        return 5

    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        rngs = [np.random.default_rng(list(text.encode())) for text in texts]
        prompt = torch.tensor(np.array([rng.normal(size=(5, 8)) for rng in rngs]), dtype=torch.float32)
        if self._pooled is None:
            return TextEmbeddings(prompt, None)
        pooled = torch.tensor(np.array([rng.normal(size=self._pooled) for rng in rngs]), dtype=torch.float32)
        return TextEmbeddings(prompt, pooled)
