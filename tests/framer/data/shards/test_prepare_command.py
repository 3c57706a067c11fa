"""``framer prepare`` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml
from shard_cases import contents, photographs

from framer.cli import main
from framer.data.shards.command import parse_size
from framer.data.shards.manifest import read_manifest


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    photographs(tmp_path / "photos")
    path = tmp_path / "config.yaml"
    data = {"train": str(tmp_path / "photos"), "crop_size": 32, "buckets": [[32, 32], [24, 40]], "workers": 1}
    path.write_text(yaml.safe_dump({"output_dir": "unused", "seed": 3, "data": data}))
    return path


def _shard(config: Path, output: Path, *more: str) -> int:
    return main(["prepare", "--config", str(config), "--output", str(output), "--samples", "12", *more])


def test_writes_resumes_and_verifies(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "shards"
    assert _shard(config, output, "--shard-size", "10KB") == 0
    out, err = capsys.readouterr()
    manifest = read_manifest(output)
    assert f"{output}: 12 samples in {len(manifest.shards)} shards, 0." in out
    assert "12/12" in err
    assert "sample/s" in err
    before = contents(output)
    assert _shard(config, output, "--shard-size", "10KB", "--workers", "0") == 0
    assert contents(output) == before
    assert main(["prepare", "--verify", str(output)]) == 0
    assert "12 samples in" in capsys.readouterr().out
    (output / "000000.tar").write_bytes(b"")
    assert main(["prepare", "--verify", str(output)]) == 2
    message = capsys.readouterr().err
    assert "000000.tar: 0 bytes instead of" in message
    assert "Traceback" not in message


def test_overrides_and_another_fingerprint(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _shard(config, tmp_path / "shards", "data.buckets=[]", "data.degradation=stablesr") == 0
    manifest = read_manifest(tmp_path / "shards")
    assert (manifest.config_buckets, manifest.crop_size, manifest.degradation) == ([], 32, "stablesr")
    assert _shard(config, tmp_path / "shards") == 2
    message = capsys.readouterr().err
    assert "made from something else" in message
    assert "data.buckets [[32, 32]] (now [[32, 32], [24, 40]])" in message
    assert "data.degradation stablesr" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --config, --output and --samples to write shards, or --verify"),
        (["--config", "x.yaml", "--output", "out"], "give --config, --output and --samples"),
        (["--config", "x.yaml", "--output", "out", "--samples", "0"], "--samples must be at least 1, got 0"),
        (
            ["--config", "x.yaml", "--output", "out", "--samples", "1", "--workers", "-1"],
            "--workers must not be negative, got -1",
        ),
        (["--config", "/no/such.yaml", "--output", "out", "--samples", "1"], "/no/such.yaml"),
        (["--verify", "/no/such/folder"], "/no/such/folder has no shards.json"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_shards_of_shards_are_refused(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _shard(config, tmp_path / "shards") == 0
    assert _shard(config, tmp_path / "more", f"data.train={tmp_path / 'shards'}") == 2
    assert "holds shards; give the photographs that they were made of" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("256MB", 256_000_000), ("1.5GB", 1_500_000_000), ("10kb", 10_000), ("10 KB", 10_000), ("7", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1TB", "0", "0.5", "1e6", "12 M"])
def test_texts_that_are_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a size such as 256MB"):
        parse_size(text)
