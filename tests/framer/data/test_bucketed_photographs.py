"""Photographs of several aspect ratios, each cropped to the size of its bucket."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from framer.data.dataset import RealISRDataset
from framer.data.images import write_png
from framer.errors import UserError

BUCKETS = [(32, 32), (24, 40), (40, 24)]
SHAPES = {"square": (64, 60), "wide": (50, 90), "wider": (48, 100), "tall": (90, 50)}


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    paths = []
    for seed, (name, shape) in enumerate(SHAPES.items()):
        paths.append(tmp_path / f"{name}.png")
        write_png(paths[-1], np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8))
    return paths


def test_photographs_are_cropped_to_their_buckets(paths: list[Path]) -> None:
    dataset = RealISRDataset(paths, crop_size=32, buckets=BUCKETS, degradation="heavy")
    assert dataset.bucket_sizes == [1, 2, 1]
    shapes = {"square": (32, 32), "wide": (24, 40), "wider": (24, 40), "tall": (40, 24)}
    seen: Counter[str] = Counter()
    for index in range(12):
        sample = dataset[index]
        height, width = shapes[sample["name"]]
        assert sample["hr"].shape == sample["lr_upsampled"].shape == (3, height, width)
        assert sample["lr"].shape == (3, height // 4, width // 4)
        assert sample["index"] == index
        seen[sample["name"]] += 1
    assert set(seen) == set(SHAPES)


def test_a_square_bucket_of_the_crops_size_changes_nothing(paths: list[Path]) -> None:
    plain = RealISRDataset(paths, crop_size=24, seed=2, quarter_turns=True)
    bucketed = RealISRDataset(paths, crop_size=24, buckets=[(24, 24)], seed=2, quarter_turns=True)
    for index in range(9):
        assert plain[index]["name"] == bucketed[index]["name"]
        assert torch.equal(plain[index]["hr"], bucketed[index]["hr"])
        assert torch.equal(plain[index]["lr"], bucketed[index]["lr"])


def test_every_bucket_has_epochs_of_its_own(paths: list[Path]) -> None:
    dataset = RealISRDataset(paths, crop_size=32, buckets=[(32, 32), (24, 48)])
    assert dataset.bucket_sizes == [2, 2]
    for bucket, size in enumerate(dataset.bucket_sizes):
        for epoch in range(5):
            names = [dataset.sample(bucket, epoch * size + place, 0)["name"] for place in range(size)]
            assert len(set(names)) == size


def test_crops_that_are_not_square_are_only_turned_half_round(tmp_path: Path) -> None:
    # Red counts columns and green counts rows, so that a pixel tells where it comes from and how it was turned.
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0] = np.arange(60) * 4
    image[..., 1] = np.arange(40)[:, None] * 4
    write_png(tmp_path / "a.png", image)
    dataset = RealISRDataset(
        [tmp_path / "a.png"], crop_size=32, buckets=[(16, 24)], horizontal_flip=False, quarter_turns=True, margin=8
    )
    directions: Counter[tuple[int, int]] = Counter()
    for index in range(40):
        hr = dataset[index]["hr"]
        assert hr.shape == (3, 16, 24)
        levels = ((hr + 1.0) * 127.5).round().int()
        directions[int(levels[0, 0, 1] - levels[0, 0, 0]), int(levels[1, 1, 0] - levels[1, 0, 0])] += 1
    assert set(directions) == {(4, 4), (-4, -4)}


def test_a_photograph_smaller_than_its_bucket_is_named(tmp_path: Path, paths: list[Path]) -> None:
    write_png(tmp_path / "low.png", np.zeros((20, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"low\.png: 64x20 pixels are too few for crops of 40x24 pixels"):
        RealISRDataset([*paths, tmp_path / "low.png"], crop_size=32, buckets=BUCKETS)


def test_a_bucket_without_photographs_is_named(paths: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = RealISRDataset(paths[:3], crop_size=32, buckets=BUCKETS)
    assert caplog.messages == ["no photograph is nearest to the aspect ratio of bucket [40, 24]"]
    assert {dataset[index]["hr"].shape for index in range(9)} == {(3, 32, 32), (3, 24, 40)}


def test_a_bucket_that_is_no_multiple_of_the_scale(paths: list[Path]) -> None:
    with pytest.raises(UserError, match="must be a multiple of scale=4, got 30"):
        RealISRDataset(paths, crop_size=32, buckets=[(32, 30)])
