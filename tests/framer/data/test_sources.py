"""What ``data.train`` names, and settings that shards cannot follow."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_folders import autoencoder

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.data.dataset import RealISRDataset
from framer.data.images import write_png
from framer.data.shards.latents import LatentEncoder
from framer.data.shards.manifest import MANIFEST_FILE, read_manifest
from framer.data.shards.reader import ShardDataset
from framer.data.shards.stream_pairs import StreamPairs
from framer.data.shards.writer import write_shards
from framer.data.sources import open_source, with_data_settings, with_shard_settings
from framer.errors import ConfigError, UserError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed, shape in enumerate([(60, 60), (40, 80)]):
        image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
        write_png(folder / f"{seed}.png", image)
    return folder


def _shards(photos: Path, folder: Path, **options: Any) -> Path:
    settings = {"crop_size": 24, "degradation": "heavy", "scale": 2} | options
    dataset = RealISRDataset(sorted(photos.glob("*.png")), **settings)
    write_shards(StreamPairs(dataset, samples=4), folder, crop_size=settings["crop_size"], shard_size=10_000, workers=0)
    return folder


@pytest.fixture(scope="module")
def square(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _shards(photos, tmp_path_factory.mktemp("square"))


@pytest.fixture(scope="module")
def bucketed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _shards(photos, tmp_path_factory.mktemp("bucketed"), buckets=[(24, 24), (16, 32)])


def _config(**data: Any) -> TrainConfig:
    return build_config(TrainConfig, {"output_dir": "x", "data": data}, source="test")


def test_photographs(photos: Path) -> None:
    config = _config(train=str(photos), crop_size=24)
    assert with_shard_settings(config) is config
    source = open_source(config.data, seed=0)
    assert isinstance(source, RealISRDataset)
    assert len(source) == 2


def test_photographs_beside_a_tar_file_are_photographs(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "backup.tar").write_bytes(b"")
    assert isinstance(open_source(_config(train=str(tmp_path / "photos"), crop_size=24).data, seed=0), RealISRDataset)


def test_settings_that_are_not_given_are_the_shards_own(square: Path, bucketed: Path) -> None:
    data = with_shard_settings(_config(train=str(square))).data
    assert (data.crop_size, data.scale, data.degradation, data.buckets) == (24, 2, "heavy", [])
    config = with_shard_settings(_config(train=str(bucketed)))
    assert config.data.buckets == [[24, 24], [16, 32]]
    assert with_shard_settings(config) == config
    assert config.data.shards_fingerprint == read_manifest(bucketed).fingerprint
    assert with_shard_settings(_config(train=str(bucketed), shards_fingerprint=None)) == config
    source = open_source(config.data, seed=0)
    assert isinstance(source, ShardDataset)
    assert source.buckets == [(24, 24), (16, 32)]
    assert len(source) == 4


def test_settings_that_agree_are_accepted(bucketed: Path) -> None:
    given = {"crop_size": 24, "scale": 2, "degradation": "heavy", "buckets": [[24, 24], [16, 32]]}
    data = with_shard_settings(_config(train=str(bucketed), **given, horizontal_flip=False, quarter_turns=True)).data
    assert (data.horizontal_flip, data.quarter_turns) == (False, True)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"crop_size": 32}, "data.crop_size=32 (the shards have 24)"),
        ({"scale": 4}, "data.scale=4 (the shards have 2)"),
        ({"degradation": "light"}, "data.degradation=light (the shards have heavy)"),
        ({"shards_fingerprint": "0" * 64}, f"data.shards_fingerprint={'0' * 64} (the shards have "),
        ({"buckets": []}, "data.buckets=[] (the shards have [[24, 24], [16, 32]])"),
        ({"buckets": [[16, 32], [24, 24]]}, "data.buckets=[[16, 32], [24, 24]] (the shards have"),
        ({"rescale": [1.0, 0.5]}, "data.rescale=[1.0, 0.5] (has no effect on shards"),
        ({"colour_jitter": True}, "data.colour_jitter=True (has no effect on shards"),
        ({"on_broken": "skip"}, "data.on_broken=skip (has no effect on shards"),
    ],
)
def test_settings_that_contradict_the_shards_are_named(bucketed: Path, given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match="contradicts the configuration") as caught:
        with_shard_settings(_config(train=str(bucketed), **given))
    assert named in str(caught.value)
    assert str(bucketed / MANIFEST_FILE) in str(caught.value)


@pytest.mark.parametrize("made_with", [{"rescale": [1.0, 0.9]}, {"colour_jitter": True}, {"on_broken": "skip"}])
def test_one_file_prepares_and_trains(photos: Path, tmp_path: Path, made_with: dict[str, Any]) -> None:
    _shards(photos, tmp_path, **made_with)
    config = with_shard_settings(_config(train=str(tmp_path), **made_with))
    assert with_shard_settings(config) == config
    other = {"rescale": [0.5], "colour_jitter": True, "on_broken": "skip"} | dict.fromkeys(made_with, None)
    for name, value in other.items():
        if value is not None:
            with pytest.raises(ConfigError, match=rf"data\.{name}=.* \(has no effect on shards"):
                with_shard_settings(_config(train=str(tmp_path), **{name: value}))


def test_pairs_with_latents_are_neither_mirrored_nor_turned(photos: Path, tmp_path: Path) -> None:
    encoder = LatentEncoder(autoencoder(tmp_path / "vae"), dtype="fp32", device=torch.device("cpu"))
    dataset = RealISRDataset(sorted(photos.glob("*.png")), crop_size=24)
    write_shards(
        StreamPairs(dataset, samples=2), tmp_path / "out", crop_size=24, shard_size=10**6, workers=0, encoder=encoder
    )
    data = {"train": str(tmp_path / "out")}
    config = with_shard_settings(_config(**data))
    assert (config.data.horizontal_flip, config.data.quarter_turns) == (False, False)
    assert with_shard_settings(config) == config
    assert open_source(config.data, seed=0).sample(0, 0, 0).keys() >= {"hr_latents_mean", "lr_latents_mean"}
    for name in ("horizontal_flip", "quarter_turns"):
        with pytest.raises(ConfigError, match=rf"data\.{name}=true \(the shards have latents, which can be neither"):
            with_shard_settings(_config(**data, **{name: True}))


def test_all_contradictions_are_told_at_once(bucketed: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        with_shard_settings(_config(train=str(bucketed), crop_size=32, colour_jitter=True))
    assert "data.crop_size" in str(caught.value)
    assert "data.colour_jitter" in str(caught.value)


def test_the_completed_configuration_is_checked_again(square: Path) -> None:
    config = _config(train=str(square))
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"crop_size": 20})})
    with pytest.raises(
        ConfigError, match=r"(?s)shards\.json.*evaluation\.crop_size 20 is smaller than data\.crop_size 24"
    ):
        with_shard_settings(config)


def test_a_fingerprint_without_shards(photos: Path) -> None:
    with pytest.raises(ConfigError, match=r"shards_fingerprint is given, but data\.train=.* holds no shards"):
        with_shard_settings(_config(train=str(photos), shards_fingerprint="0" * 64))


def test_photographs_have_a_fingerprint_of_names_and_sizes(tmp_path: Path) -> None:
    def fingerprint() -> str | None:
        config = with_data_settings(_config(train=str(tmp_path)))
        assert with_data_settings(config) == config
        return config.data.photographs_fingerprint

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"12")
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"1")
    seen = {fingerprint()}
    (tmp_path / "a" / "1.png").write_bytes(b"123")
    seen.add(fingerprint())
    (tmp_path / "a").rename(tmp_path / "b")
    seen.add(fingerprint())
    (tmp_path / "b" / "2.txt").touch()
    (tmp_path / "b" / "2.jpg").touch()
    seen.add(fingerprint())
    assert len(seen) == 4
    assert fingerprint() in seen


def test_a_fingerprint_of_photographs_in_the_place_of_shards(tmp_path: Path, photos: Path) -> None:
    shards = _shards(photos, tmp_path)
    with pytest.raises(ConfigError, match=r"photographs_fingerprint is given, but data\.train=.* holds shards"):
        with_data_settings(_config(train=str(shards), photographs_fingerprint="0"))


def test_tar_files_without_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no shards\.json"):
        with_shard_settings(_config(train=str(tmp_path)))


def test_a_damaged_manifest(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text(json.dumps({"format_version": 2}))
    with pytest.raises(UserError, match=r"shards\.json is damaged: samples: field required"):
        with_shard_settings(_config(train=str(tmp_path)))
