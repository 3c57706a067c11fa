"""``framer prepare --preview`` on the command line."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import yaml

from framer.cli import main
from framer.data.images import read_image, write_png
from framer.data.photographs import bundled_photographs
from framer.data.preview import write_preview


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    data = {"train": "bundled", "crop_size": 32, "scale": 2}
    path.write_text(yaml.safe_dump({"output_dir": "unused", "seed": 3, "data": data}))
    return path


def test_writes_the_sheet_of_the_configuration_and_nothing_else(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    assert main(["prepare", "--config", str(config), "--preview", str(sheet), "data.crop_size=64"]) == 0
    assert capsys.readouterr().out.startswith(f"{sheet}: 3 crops of 64 x 64 pixels, 2 draws of each of heavy, light")
    expected = tmp_path / "expected.png"
    write_preview(expected, bundled_photographs("train"), crop_size=64, scale=2, seed=3)
    assert (read_image(sheet) == read_image(expected)).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "expected.png", "new"]


def test_what_is_missing_is_said(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = str(tmp_path / "sheet.png")
    large = ("data.crop_size=4096", "evaluation.crop_size=4096")
    assert main(["prepare", "--preview", sheet]) == 2
    assert "--preview needs --config" in capsys.readouterr().err
    assert main(["prepare", "--config", str(config), "--preview", sheet, "data.train=/no/such/folder"]) == 2
    assert "image folder /no/such/folder does not exist" in capsys.readouterr().err
    assert main(["prepare", "--config", str(config), "--preview", sheet, *large]) == 2
    assert "pixels are too few for crops of 4096x4096 pixels" in capsys.readouterr().err


def test_broken_photographs_are_skipped_where_the_configuration_says_so(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    photos, sheet = tmp_path / "photos", tmp_path / "sheet.png"
    write_png(photos / "a.png", np.zeros((64, 64, 3), np.uint8))
    write_png(photos / "small.png", np.zeros((31, 64, 3), np.uint8))
    (photos / "broken.png").touch()
    arguments = ["prepare", "--config", str(config), "--preview", str(sheet), f"data.train={photos}"]
    assert main(arguments) == 2
    assert not sheet.exists()
    assert main([*arguments, "data.on_broken=skip"]) == 0
    assert "skipped photograph" in caplog.text
    assert {name for name in ("broken.png", "small.png") if name in caplog.text} == {"broken.png", "small.png"}
    (photos / "a.png").unlink()
    assert main([*arguments, "data.on_broken=skip"]) == 2
    assert "2 of 2 photographs cannot be used" in capsys.readouterr().err


def test_a_full_disk_is_told_with_the_file(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    sheet = tmp_path / "sheet.png"
    assert main(["prepare", "--config", str(config), "--preview", str(sheet)]) == 2
    assert f"cannot write {sheet}: No space left on device" in capsys.readouterr().err


def test_no_photograph_is_replaced(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = tmp_path / "photos" / "a.png"
    write_png(photograph, np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    before = photograph.read_bytes()
    for path in ("photos/a.png", "photos/new/sheet.png", "link/a.png", "photos/../photos/b.png"):
        arguments = ["--preview", str(tmp_path / path), f"data.train={tmp_path / 'photos'}"]
        assert main(["prepare", "--config", str(config), *arguments]) == 2
        assert "lies in the folder of the photographs; give another path" in capsys.readouterr().err
    assert main(["prepare", "--config", str(config), "--preview", str(tmp_path / "config.yaml")]) == 2
    assert "config.yaml: expected a name that ends in .png" in capsys.readouterr().err
    assert photograph.read_bytes() == before
    assert list((tmp_path / "photos").iterdir()) == [photograph]
