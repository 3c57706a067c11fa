"""``framer prepare --from`` on the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from family_folders import autoencoder
from layout_cases import NAMES, make_layout
from text_folders import sd21_texts

from framer.cli import main
from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.data.layouts.dit4sr import DIT4SR
from framer.data.layouts.seesr import SEESR
from framer.data.shards.manifest import read_manifest
from framer.data.shards.reader import ShardDataset
from framer.data.sources import open_source, with_shard_settings
from framer.errors import UserError
from framer.models.text_encoders import load_text_encoder


def prepare(*arguments: object) -> int:
    return main(["prepare", *map(str, arguments)])


def test_dit4sr_folder_becomes_shards_that_training_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = make_layout(tmp_path / "pairs", DIT4SR), tmp_path / "shards"
    command = ("--from", folder, "--layout", "dit4sr", "--output", output, "--shard-size", "40KB")
    assert prepare(*command, "--licence", "CC-BY-4.0") == 0
    manifest = read_manifest(output)
    assert f"{output}: 6 samples in {len(manifest.shards)} shards" in capsys.readouterr().out
    assert manifest.licences[0].licence == "CC-BY-4.0"
    assert manifest.texts is not None
    assert (manifest.texts.prompt, manifest.texts.pooled) == (4096, 2048)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert prepare(*command, "--licence", "CC-BY-4.0", "--workers", "2") == 0
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert prepare("--verify", output) == 0
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"output_dir": "unused", "data": {"train": str(output)}}))
    config = with_shard_settings(load_config(TrainConfig, path, []))
    assert (config.data.crop_size, config.data.scale, config.data.degradation) == (64, 4, "heavy")
    source = open_source(config.data, seed=0)
    assert {source.sample(0, place, place)["name"] for place in range(len(source))} == set(NAMES)


def test_seesr_with_new_latents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = make_layout(tmp_path / "pairs", SEESR), tmp_path / "shards"
    options = ("--layout", "seesr", "--output", output, "--degradation", "light")
    assert prepare("--from", folder, *options, "--vae", autoencoder(tmp_path / "vae"), "--captions", "null") == 0
    manifest = read_manifest(output)
    assert manifest.degradation == "light"
    assert manifest.latents is not None
    assert manifest.latents.downscale == 2
    assert "noted as unknown" in capsys.readouterr().out


def test_seesr_tags_are_embedded_by_a_text_encoder(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder, output = make_layout(tmp_path / "pairs", SEESR), tmp_path / "shards"
    encoder = sd21_texts(tmp_path / "encoder")
    assert prepare("--from", folder, "--layout", "seesr", "--output", output, "--text-encoder", encoder) == 0
    manifest = read_manifest(output)
    assert manifest.texts is not None
    dataset = ShardDataset(output, manifest, seed=0)
    expected = load_text_encoder(encoder, device=torch.device("cpu"))
    for place in range(len(dataset)):
        sample = dataset[place]
        text = expected.encode([f"Photograph {sample['name']}, é."]).prompt[0]
        torch.testing.assert_close(sample["prompt_embeds"], text, rtol=2e-3, atol=2e-3)  # stored as fp16


def test_a_folder_with_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = make_layout(tmp_path / "pairs", SEESR), tmp_path / "shards"
    (folder / "lr" / "a.png").unlink()
    (folder / "tag" / "b.txt").rename(folder / "tag" / "c.txt")
    assert prepare("--from", folder, "--layout", "seesr", "--output", output) == 2
    error = capsys.readouterr().err
    assert "lr lacks 2: a, c" in error
    assert "tag lacks 1: b" in error
    assert not output.exists()
    shutil.copy(folder / "gt" / "a.png", folder / "lr" / "a.png")
    (folder / "tag" / "c.txt").rename(folder / "tag" / "b.txt")
    assert prepare("--from", folder, "--layout", "seesr", "--output", output) == 2
    assert "a: lr has 64x64, gt 64x64" in capsys.readouterr().err
    assert prepare("--from", folder, "--layout", "dit4sr", "--output", output, "--keep-latents") == 2
    assert "has no latents" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "x"], "--from needs --output and --layout, one of dit4sr, seesr"),
        (["--from", "x", "--layout", "seesr"], "--from needs --output and --layout"),
        (["--layout", "seesr"], "--layout is of folders that --from names; give --from too"),
        (["--keep-latents"], "--keep-latents is of folders that --from names"),
        (["--from", "x", "--layout", "seesr", "--output", "o", "--config", "c"], "--config is of photographs"),
        (["--from", "x", "--layout", "seesr", "--output", "o", "--samples", "3"], "--samples is of photographs"),
        (["--from", "x", "--layout", "seesr", "--output", "o", "data.scale=2"], "data.scale=2 is of photographs"),
        (["--from", "/no/such", "--layout", "seesr", "--output", "/tmp/o"], "--from /no/such is not a folder"),
        (["--from", "x", "--layout", "seesr", "--output", "o", "--workers", "-1"], "--workers must not be negative"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(*arguments) == 2
    assert message in capsys.readouterr().err


def test_other_settings_than_the_pairs_are_refused_in_training(tmp_path: Path) -> None:
    folder, output = make_layout(tmp_path / "pairs", SEESR), tmp_path / "shards"
    assert prepare("--from", folder, "--layout", "seesr", "--output", output) == 0
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"output_dir": "unused", "data": {"train": str(output), "colour_jitter": True}}))
    with pytest.raises(UserError, match=r"data.colour_jitter=True"):
        with_shard_settings(load_config(TrainConfig, path, []))


def test_texts_are_not_written_beside_shards_that_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    folder, output = make_layout(tmp_path / "pairs", SEESR), tmp_path / "shards"
    options = ("--from", folder, "--layout", "seesr", "--output", output, "--workers", "0")
    assert prepare(*options, "--captions", "null") == 0
    before = contents()
    assert prepare(*options, "--captions", "null") == 0
    assert contents() == before
    capsys.readouterr()
    for more, message in (
        (("--captions", "null", "--text-encoder", "/no/such"), "made without embedded texts"),
        (("--captions", "model:/no/such"), "--captions null (now model)"),
        (("--text-encoder", "/no/such"), "--captions null (now --from)"),
        (("--captions", "null", "--degradation", "light"), "--degradation heavy (now light)"),
    ):
        assert prepare(*options, *more) == 2
        assert message in capsys.readouterr().err
        assert contents() == before


@pytest.mark.parametrize("output", ["pairs", "pairs/gt", "pairs/new/shards", "link"])
def test_an_output_in_the_folder_of_the_pairs_is_refused(
    tmp_path: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs" / "gt").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "pairs" / "gt")
    assert prepare("--from", tmp_path / "pairs", "--layout", "seesr", "--output", tmp_path / output) == 2
    assert f"--output {tmp_path / output} lies in --from" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "pairs").rglob("*")] == ["gt"]
