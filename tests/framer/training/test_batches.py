"""The trainer's batches: every sample once an epoch, whatever the ranks, the workers and the interruptions."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.data.dataset import RealISRDataset
from framer.data.images import write_png
from framer.data.samples import Sample
from framer.data.shards.stream_pairs import StreamPairs
from framer.data.shards.writer import write_shards
from framer.data.sources import with_shard_settings
from framer.training.batches import build_dataset, stream_batches

SQUARES, WIDES = 12, 8
BUCKETS = [[16, 16], [12, 24]]
GLOBAL_BATCH = 4
EPOCH = (SQUARES + WIDES) // GLOBAL_BATCH


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(SQUARES + WIDES):
        shape = (20, 20) if seed < SQUARES else (20, 40)
        image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
        write_png(folder / f"{seed:02d}.png", image)
    return folder


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One sample of each photograph, so that a photograph's name tells the sample."""
    folders = {}
    for name, buckets in (("squares", []), ("buckets", [(16, 16), (12, 24)])):
        folders[name] = tmp_path_factory.mktemp(name)
        dataset = RealISRDataset(sorted(photos.glob("*.png")), crop_size=16, buckets=buckets)
        write_shards(
            StreamPairs(dataset, samples=SQUARES + WIDES), folders[name], crop_size=16, shard_size=3_000, workers=0
        )
    return folders


@pytest.fixture(params=["photographs", "shards"])
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _config(photos: Path, shards: dict[str, Path], source: str, kind: str, world: int, workers: int) -> TrainConfig:
    folder = photos if source == "photographs" else shards[kind]
    data = {"train": str(folder), "crop_size": 16, "workers": workers}
    content = {
        "output_dir": "unused",
        "seed": 7,
        "data": data | {"buckets": BUCKETS if kind == "buckets" else []},
        "training": {"batch_size": GLOBAL_BATCH // world},
    }
    return with_shard_settings(build_config(TrainConfig, content, source="test"))


def _micro_steps(config: TrainConfig, world: int, *, start: int, count: int) -> list[list[Sample]]:
    """The batches of all ranks, by micro-step."""
    ranks = [
        list(stream_batches(build_dataset(config), config, rank=rank, world_size=world, start=start, count=count))
        for rank in range(world)
    ]
    return [list(batches) for batches in zip(*ranks, strict=True)]


def _names(micro_steps: list[list[Sample]]) -> list[str]:
    return [name for batches in micro_steps for batch in batches for name in batch["name"]]


def _flat(micro_steps: list[list[Sample]], key: str) -> list[torch.Tensor]:
    return [value for batches in micro_steps for batch in batches for value in batch[key]]  # type: ignore[literal-required]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kind", ["squares", "buckets"])
def test_resumed_in_mid_epoch_every_sample_is_seen_once(
    photos: Path, shards: dict[str, Path], source: str, kind: str, world: int, workers: int
) -> None:
    config = _config(photos, shards, source, kind, world, workers)
    stopped = 2
    before = _micro_steps(config, world, start=0, count=stopped)
    after = _micro_steps(config, world, start=stopped, count=EPOCH - stopped)
    assert Counter(_names(before + after)) == Counter(f"{number:02d}" for number in range(SQUARES + WIDES))
    indices = [int(index) for index in _flat(before + after, "index")]
    assert indices == list(range(GLOBAL_BATCH * EPOCH))


@pytest.mark.parametrize("kind", ["squares", "buckets"])
def test_ranks_workers_and_interruptions_do_not_change_the_stream(
    photos: Path, shards: dict[str, Path], source: str, kind: str
) -> None:
    one = _micro_steps(_config(photos, shards, source, kind, 1, 0), 1, start=0, count=8)
    config = _config(photos, shards, source, kind, 2, 3)
    two = [
        step for start in (0, 3, 4) for step in _micro_steps(config, 2, start=start, count={0: 3, 3: 1, 4: 4}[start])
    ]
    assert _names(one) == _names(two)
    for key in ("hr", "lr", "lr_upsampled", "index"):
        assert all(torch.equal(a, b) for a, b in zip(_flat(one, key), _flat(two, key), strict=True))


def test_the_samples_of_a_micro_step_have_one_size_on_all_ranks(
    photos: Path, shards: dict[str, Path], source: str
) -> None:
    config = _config(photos, shards, source, "buckets", 2, 0)
    shapes = [{tuple(batch["hr"].shape) for batch in step} for step in _micro_steps(config, 2, start=0, count=10)]
    assert all(len(step) == 1 for step in shapes)
    assert set.union(*shapes) == {(2, 3, 16, 16), (2, 3, 12, 24)}


def test_buckets_whose_samples_do_not_fill_a_batch_drop_none(
    photos: Path, shards: dict[str, Path], source: str
) -> None:
    """Batches of 5 do not divide 12 or 8: leftovers go on in a bucket's next epoch."""
    config = _config(photos, shards, source, "buckets", 1, 0)
    config = config.model_copy(update={"training": config.training.model_copy(update={"batch_size": 5})})
    streams: dict[int, list[str]] = defaultdict(list)
    for (batch,) in _micro_steps(config, 1, start=0, count=36):
        streams[batch["hr"].shape[2]] += batch["name"]
    for height, size, first in ((16, SQUARES, 0), (12, WIDES, SQUARES)):
        expected = {f"{number:02d}" for number in range(first, first + size)}
        epochs = [streams[height][start : start + size] for start in range(0, len(streams[height]) - size + 1, size)]
        assert len(epochs) >= 4
        assert all(set(epoch) == expected for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
