"""Photographs of ``data.evaluation`` have room for their crops, and are not trained on."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from framer.config.loading import build_config, load_config
from framer.config.training import TrainConfig
from framer.data.dataset import RealISRDataset
from framer.data.evaluation_photographs import check_apart, check_crops
from framer.data.images import image_size, read_image, write_png
from framer.data.shards.photographs import PHOTOGRAPHS_FILE
from framer.data.shards.stream_pairs import StreamPairs
from framer.data.shards.writer import write_shards
from framer.errors import UserError
from framer.files import file_sha256

CONFIGS = Path(__file__).parents[3] / "configs"
TRAINING = sorted(path for path in CONFIGS.rglob("*.yaml") if "output_dir" in yaml.safe_load(path.read_text()))


def photograph(path: Path, height: int = 64, width: int = 64, *, seed: int = 0) -> Path:
    write_png(path, np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    return path


def config_of(train: Path, evaluation: Path, **more: Any) -> TrainConfig:
    sections = {
        "output_dir": "runs/x",
        "data": {"train": str(train), "evaluation": str(evaluation), "crop_size": 32},
        "evaluation": {"crop_size": 32, **more},
    }
    return build_config(TrainConfig, sections, source="a test")


@pytest.mark.parametrize("path", TRAINING, ids=[str(path.relative_to(CONFIGS)) for path in TRAINING])
def test_a_shipped_configuration_has_held_out_crops_or_asks_for_a_folder(path: Path) -> None:
    config = load_config(TrainConfig, path)
    if config.data.evaluation in ("heldout", "validation"):
        check_crops(config)
    else:
        assert config.data.evaluation == "heldout_photographs"


def test_every_photograph_without_room_is_named_with_the_settings(tmp_path: Path) -> None:
    photograph(tmp_path / "a.png", 60, 96)
    photograph(tmp_path / "b.png", 31, 96)
    photograph(tmp_path / "c.png", 64, 96)
    (tmp_path / "d.jpg").write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        check_crops(config_of(tmp_path / "train", tmp_path, crops_per_photo=6))
    message = str(caught.value)
    settings = f"data.evaluation={tmp_path}, evaluation.crop_size=32, evaluation.crops_per_photo=6"
    assert message.startswith(f"3 of 4 evaluation photographs cannot be used ({settings}); name a folder of larger")
    assert "a.png: 96x60 pixels have room for 3 crops of 32x32 pixels without overlap, not for 6" in message
    assert "b.png: 96x31 pixels are too few for crops of 32x32 pixels" in message
    assert "d.jpg: not an image in a known format" in message


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_the_size_in_a_header_is_that_of_the_image(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (24, 16)).save(path, exif=exif)
    assert image_size(path) == read_image(path).shape[:2]


def test_photographs_of_one_size_are_told_apart_by_their_beginnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        photograph(tmp_path / f"photos/{seed}.png", seed=seed)
    photograph(tmp_path / "other/a.png", seed=4)
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    monkeypatch.setattr("framer.data.evaluation_photographs.file_sha256", counted)
    check_apart(config_of(tmp_path / "photos", tmp_path / "other"))
    assert not read
    shutil.copy(tmp_path / "photos/3.png", tmp_path / "other/b.png")
    with pytest.raises(UserError, match=r"b\.png \(there .*3\.png\)"):
        check_apart(config_of(tmp_path / "photos", tmp_path / "other"))
    assert len(read) == 2


def test_photographs_that_are_trained_on_are_refused(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    inside = photograph(photos / "heldout/a.png")
    photograph(photos / "b.png", seed=1)
    with pytest.raises(
        UserError, match=rf"1 of 1 photographs are trained on .*: {inside}; move them out of data.train"
    ):
        check_apart(config_of(photos, photos / "heldout"))
    check_apart(config_of(photos, photos / "heldout", allow_training_photographs=True))
    other = tmp_path / "other"
    # The same pixels give the same size of file, and so do others here: only the content tells.
    plain = photograph(other / "plain.png", seed=2)
    assert plain.stat().st_size == (photos / "b.png").stat().st_size
    check_apart(config_of(photos, other))
    shutil.copy(photos / "b.png", other / "copied.png")
    os.link(inside, other / "linked.png")
    expected = rf"2 of 3 .*: {other}/copied.png \(there {photos}/b.png\), {other}/linked.png \(there {inside}\);"
    with pytest.raises(UserError, match=expected):
        check_apart(config_of(photos, other))
    (other / "copied.png").unlink()
    (other / "linked.png").unlink()
    (other / "link.png").symlink_to(inside)
    (other / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"1 of 3 .*link\.png \(there "):
        check_apart(config_of(photos, other))


def test_shards_know_what_they_were_made_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = tmp_path / "shards"
    paths = [photograph(tmp_path / "photos" / f"{seed}\n.png", seed=seed) for seed in range(3)]
    pairs = StreamPairs(RealISRDataset(paths, crop_size=32), samples=3)
    write_shards(pairs, shards, crop_size=32, shard_size=10**6, workers=0)
    (tmp_path / "other").mkdir()
    evaluated = photograph(tmp_path / "other/z.png", seed=9)
    config = config_of(shards, evaluated.parent)
    check_apart(config)
    shutil.copy(paths[1], evaluated)
    with pytest.raises(UserError, match=rf"1 of 1 .*: {evaluated}; prepare shards without them"):
        check_apart(config)
    listed = (shards / PHOTOGRAPHS_FILE).read_bytes()
    (shards / PHOTOGRAPHS_FILE).write_bytes(listed.replace(b"1", b"2", 1))
    with pytest.raises(UserError, match=r"photographs\.list is damaged"):
        check_apart(config)
    (shards / PHOTOGRAPHS_FILE).unlink()
    with caplog.at_level(logging.WARNING):
        check_apart(config)
    assert re.search(r"photographs\.list is missing: .* is not checked", caplog.text)
