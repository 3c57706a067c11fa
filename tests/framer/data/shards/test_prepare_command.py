"""``framer prepare`` on the command line."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import yaml
from family_folders import autoencoder
from shard_cases import NumberedTexts, contents, photographs

from framer.cli import main
from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.data import sources
from framer.data.outputs import LOCK_FILE
from framer.data.photographs import bundled_photographs
from framer.data.shards.command import parse_size
from framer.data.shards.manifest import read_manifest
from framer.data.sources import open_source, with_shard_settings
from framer.models import text_encoders


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    photographs(tmp_path / "photos")
    path = tmp_path / "config.yaml"
    data = {"train": str(tmp_path / "photos"), "crop_size": 32, "buckets": [[32, 32], [24, 40]], "workers": 1}
    path.write_text(yaml.safe_dump({"output_dir": "unused", "seed": 3, "data": data}))
    return path


_SOME = ["--config", "CONFIG", "--output", "OUTPUT", "--samples", "1"]


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
        (["--verify", "x", "--preview", "y.png"], "--verify and --preview: one command does one of these"),
        (["--verify", "x", "--config", "y.yaml", "a=1"], "--config, a=1: without effect on --verify; leave it away"),
        (["--config", "x.yaml", "--preview", "y.png", "--samples", "0"], "--samples: without effect on --preview"),
        (
            ["--config", "x.yaml", "--evaluation-pairs", "OUTPUT", "--vae", "z", "--keep-latents"],
            "--vae, --keep-latents: without effect on --evaluation-pairs; leave it away",
        ),
        (["--verify", "x", "--workers", "0", "--device", "cuda"], "--workers, --device: without effect on --verify"),
        ([*_SOME, "--text-encoder", "x"], "--text-encoder embeds captions; give --captions too"),
        ([*_SOME, "--latents-dtype", "fp16"], "--latents-dtype is of the latents that --vae stores; give --vae too"),
        ([*_SOME, "--licence", " "], "--licence must not be empty"),
        ([*_SOME, "--vae", "/no/such"], "--vae: /no/such/config.json not found"),
        ([*_SOME, "--licence", "CC0-1.0", "data.train=bundled", "data.buckets=[]"], "--licence CC0-1.0: the bundled"),
        ([*_SOME, "data.evaluation=PHOTOS", "evaluation.crop_size=32"], "photographs are trained on too"),
        ([*_SOME, "data.evaluation=PHOTOS"], "evaluation.crop_size=256, evaluation.crops_per_photo=1); name a folder"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"CONFIG": config, "OUTPUT": tmp_path / "out", "PHOTOS": tmp_path / "photos"}
    for place, path in places.items():
        arguments = [argument.replace(place, str(path)) for argument in arguments]
    assert main(["prepare", *arguments]) == 2
    assert not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _shard(config, tmp_path / "out", "--device", "cuda") == 2
    assert "--device cuda: this installation of torch finds no CUDA GPU" in capsys.readouterr().err


def test_latents_and_texts(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoders, "load_text_encoder", lambda folder, **options: NumberedTexts())
    (tmp_path / "captions").mkdir()
    for number in range(5):
        (tmp_path / "captions" / f"photo{number}.txt").write_text(f"photograph {number}", encoding="utf-8")
    options = ["--vae", str(autoencoder(tmp_path / "vae")), "--latents-dtype", "fp16"]
    options += ["--captions", str(tmp_path / "captions"), "--text-encoder", "folder", "--licence", "CC-BY-4.0, me"]
    output = tmp_path / "shards"
    assert _shard(config, output, *options) == 0
    assert "unknown" not in capsys.readouterr().out
    manifest = read_manifest(output)
    assert manifest.latents is not None
    assert manifest.texts is not None
    assert [licence.model_dump() for licence in manifest.licences] == [
        {"photographs": "all", "licence": "CC-BY-4.0, me", "credit": None, "source": None}
    ]
    before = contents(output)
    assert "texts/texts.json" in before
    assert _shard(config, output, *options) == 0
    assert contents(output) == before
    assert main(["prepare", "--verify", str(output)]) == 0
    assert "12 samples in 2 shards, and 6 texts, are intact" in capsys.readouterr().out
    data = load_config(TrainConfig, str(config), [f"data.train={output}"])
    sample = open_source(with_shard_settings(data).data, seed=0).sample(0, 0, 0)
    expected = NumberedTexts().encode([f"photograph {sample['name'].removeprefix('photo')}"]).prompt[0]
    torch.testing.assert_close(sample["prompt_embeds"], expected, atol=2e-3, rtol=2e-3)
    assert sample["hr_latents_mean"].dtype == torch.float32
    (output / "texts" / "texts-000000.safetensors").write_bytes(b"")
    assert main(["prepare", "--verify", str(output)]) == 2
    assert "texts-000000.safetensors" in capsys.readouterr().err
    assert _shard(config, output, *options) == 0
    assert contents(output) == before


def test_captions_that_are_missing_are_named(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "photo0.txt").write_text("a photograph", encoding="utf-8")
    assert _shard(config, tmp_path / "shards", "--captions", str(tmp_path / "captions")) == 2
    assert "photo1" in capsys.readouterr().err


def test_texts_are_not_written_beside_shards_without(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _shard(config, tmp_path / "shards") == 0
    before = contents(tmp_path / "shards")
    assert _shard(config, tmp_path / "shards", "--captions", "null", "--text-encoder", "/no/such") == 2
    assert "made from something else: --captions None (now null)" in capsys.readouterr().err
    assert contents(tmp_path / "shards") == before


def test_an_unknown_licence_is_said(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _shard(config, tmp_path / "shards") == 0
    assert "the licence of the photographs is noted as unknown; --licence says it" in capsys.readouterr().out
    assert [licence.licence for licence in read_manifest(tmp_path / "shards").licences] == ["unknown"]
    # A note alone: the shards stay as they are.
    assert _shard(config, tmp_path / "shards", "--licence", "CC0-1.0") == 0
    assert [licence.licence for licence in read_manifest(tmp_path / "shards").licences] == ["CC0-1.0"]
    assert _shard(config, tmp_path / "shards") == 0
    assert "replaces" not in capsys.readouterr().out
    assert [licence.licence for licence in read_manifest(tmp_path / "shards").licences] == ["CC0-1.0"]
    assert _shard(config, tmp_path / "shards", "--licence", "CC-BY-4.0") == 0
    assert "--licence CC-BY-4.0 replaces the licence noted before, CC0-1.0" in capsys.readouterr().out
    assert [licence.licence for licence in read_manifest(tmp_path / "shards").licences] == ["CC-BY-4.0"]


def test_photographs_whose_names_are_not_text(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "photos").iterdir():
        path.rename(path.with_name(os.fsdecode(b"\xff" + os.fsencode(path.name))))
    photos = f"data.evaluation={tmp_path / 'photos'}"
    assert _shard(config, tmp_path / "shards") == 0
    assert main(["prepare", "--verify", str(tmp_path / "shards")]) == 0
    for _ in range(2):
        assert main(["prepare", "--config", str(config), "--evaluation-pairs", str(tmp_path / "pairs"), photos]) == 0
    names = sorted(path.name for path in (tmp_path / "pairs" / "lr").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "photos").iterdir())
    assert main(["prepare", "--config", str(config), "--preview", str(tmp_path / "sheet.png")]) == 0
    capsys.readouterr()
    assert _shard(config, tmp_path / "texts", "--captions", "null") == 2
    assert "is not UTF-8, so that no text can be kept under it; rename it" in capsys.readouterr().err


def test_the_licences_of_the_bundled_photographs_are_noted(config: Path, tmp_path: Path) -> None:
    assert _shard(config, tmp_path / "shards", "data.train=bundled", "data.buckets=[]") == 0
    noted = {licence.photographs: licence for licence in read_manifest(tmp_path / "shards").licences}
    assert noted.keys() == {path.stem for path in bundled_photographs("train")}
    assert (noted["china"].licence, noted["china"].credit) == ("CC-BY-2.0", "danielbuechele")
    assert all(licence.source for licence in noted.values())


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


@pytest.mark.parametrize("more", [["--text-encoder", "folder"], ["--captions", "model:/no/such"]])
def test_other_texts_are_refused_before_anything_is_captioned_or_encoded(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
) -> None:
    monkeypatch.setattr(text_encoders, "load_text_encoder", lambda folder, **options: NumberedTexts())
    assert _shard(config, tmp_path / "shards", "--captions", "null") == 0
    before = contents(tmp_path / "shards")
    assert _shard(config, tmp_path / "shards", "--captions", "null", *more) == 2
    assert "--output" in (message := capsys.readouterr().err)
    assert "without embedded texts" in message or "--captions null (now model)" in message
    assert contents(tmp_path / "shards") == before


def test_other_samples_and_encoders_are_refused_before_texts_are_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoders, "load_text_encoder", lambda folder, **options: NumberedTexts())
    options = ["--captions", "null", "--text-encoder", "folder"]
    assert _shard(config, tmp_path / "shards", *options) == 0
    shutil.rmtree(tmp_path / "shards" / "texts")
    before = contents(tmp_path / "shards")
    assert _shard(config, tmp_path / "shards", *options, "seed=4") == 2
    assert "seed 3 (now 4)" in capsys.readouterr().err
    assert contents(tmp_path / "shards") == before
    assert _shard(config, tmp_path / "shards", *options) == 0
    before = contents(tmp_path / "shards")
    monkeypatch.setattr(text_encoders, "load_text_encoder", lambda folder, **options: NumberedTexts(pooled=3))
    assert _shard(config, tmp_path / "shards", *options) == 2
    assert "encoder numbers, pooled None (now numbers, pooled 3)" in capsys.readouterr().err
    assert contents(tmp_path / "shards") == before


def test_an_output_that_cannot_be_written_is_found_first(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*_: object, **__: object) -> NoReturn:
        raise AssertionError("photographs were opened")

    monkeypatch.setattr(sources, "open_photographs", unexpected)
    (tmp_path / "file").touch()
    assert _shard(config, tmp_path / "file" / "z") == 2
    assert "file/z: Not a directory" in capsys.readouterr().err
    with (tmp_path / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert _shard(config, tmp_path) == 2
    assert f"another process is writing into {tmp_path}" in capsys.readouterr().err


def test_shards_are_not_written_among_the_photographs(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(tmp_path / "photos")
    assert _shard(config, tmp_path / "photos") == 2
    assert "is the folder of the photographs; give another one" in capsys.readouterr().err
    assert contents(tmp_path / "photos") == before
