"""``framer prepare --preview`` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from framer.cli import main
from framer.data.images import read_image
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
