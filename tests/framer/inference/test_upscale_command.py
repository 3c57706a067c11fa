"""``framer upscale`` with the bundled base model and small images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import family_folders
import numpy as np
import pytest
import text_folders
import torch
from PIL import Image

from framer import cli
from framer.data.images import read_image
from framer.errors import UserError
from framer.inference.jobs import plan_jobs
from framer.models.text import TextEmbeddings
from framer.models.text_encoders import load_text_encoder


def upscale(*arguments: object) -> int:
    return cli.main(["upscale", *map(str, arguments)])


def picture(path: Path, size: tuple[int, int] = (6, 5), *, seed: int = 0, mode: str = "RGB") -> Path:
    """Noise of a height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(samples).convert(mode).save(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_becomes_one_of_the_same_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a.png", "b c/ü 字.jpg", "b c/deep/e.webp", "f.TIF"]
    for seed, name in enumerate(names):
        picture(tmp_path / "in" / name, (3 + seed, 8), seed=seed)
    (tmp_path / "in/notes.txt").write_text("no image")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert out == "4 images upscaled\n"
    assert [line.split("]")[0] for line in err.splitlines()] == [f"[{i}/4" for i in range(1, 5)]
    assert "tiles/s" in err
    assert "images/s" in err
    assert " left" in err.splitlines()[0]
    assert sorted(contents(tmp_path / "out")) == sorted(names)
    for seed, name in enumerate(names):
        assert read_image(tmp_path / "out" / name).shape == (4 * (3 + seed), 32, 3)


def test_a_single_image_becomes_the_file_that_is_named(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    assert upscale(source, "-o", tmp_path / "new/b.webp") == 0
    assert upscale(source, "-o", tmp_path / "folder") == 0
    assert Image.open(tmp_path / "new/b.webp").format == "WEBP"
    assert list(contents(tmp_path / "folder")) == ["a.png"]


def test_the_format_can_be_chosen(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.bmp")
    picture(tmp_path / "in/b.jpg")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--format", "png") == 0
    assert sorted(contents(tmp_path / "out")) == ["a.png", "b.png"]


def test_results_do_not_depend_on_names_or_company(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png", seed=1)
    picture(tmp_path / "in/b.png", seed=2)
    shutil.copy(picture(tmp_path / "in/c.png", seed=1), tmp_path / "in/z.png")
    assert upscale(tmp_path / "in", "-o", tmp_path / "all", "--seed", 3) == 0
    assert upscale(tmp_path / "in/b.png", "-o", tmp_path / "one", "--seed", 3) == 0
    results = contents(tmp_path / "all")
    assert results["a.png"] == results["c.png"] == results["z.png"]
    assert results["b.png"] == contents(tmp_path / "one")["b.png"]


def test_what_is_there_is_skipped_unless_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "in/a.png")
    picture(tmp_path / "in/b.png", seed=1)
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 0
    before = contents(tmp_path / "out")
    (tmp_path / "out/a.png").unlink()
    (tmp_path / "out/b.png").write_bytes(b"mine")
    capsys.readouterr()
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 0
    assert capsys.readouterr().out == "1 images upscaled, 1 were there already (--overwrite makes them again)\n"
    assert contents(tmp_path / "out") == before | {"b.png": b"mine"}
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--overwrite") == 0
    assert contents(tmp_path / "out") == before


def test_a_broken_image_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = picture(tmp_path / "in/a.png", (30, 30))
    (tmp_path / "in/b.png").write_bytes(whole.read_bytes()[:1500])
    (tmp_path / "in/c.png").write_bytes(b"")
    picture(tmp_path / "in/d.png")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 1
    out, err = capsys.readouterr()
    assert out == "2 images upscaled, 2 failed\n"
    failed = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2
    assert "b.png" in failed[0]
    assert "c.png: the file is empty (0 bytes)" in failed[1]
    assert sorted(contents(tmp_path / "out")) == ["a.png", "d.png"]


def test_an_image_too_large_for_its_format_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "in/a.webp", (2, 4100))
    picture(tmp_path / "in/b.webp")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "a.webp: 16400x8 pixels are more than WEBP can hold (16383 a side)" in capsys.readouterr().err
    assert list(contents(tmp_path / "out")) == ["b.webp"]


def test_what_is_changed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "a.jpg", mode="CMYK")
    assert upscale(tmp_path / "a.jpg", "-o", tmp_path / "out") == 0
    assert "(CMYK is converted to RGB)" in capsys.readouterr().err


@pytest.mark.parametrize("options", ["--start lr --strength 0.7", "--colour-fix wavelet", "--tile 32"])
def test_options_change_the_result(options: str, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png", (20, 20))
    assert upscale(source, "-o", tmp_path / "plain.png") == 0
    assert upscale(source, "-o", tmp_path / "other.png", *options.split()) == 0
    assert not np.array_equal(read_image(tmp_path / "plain.png"), read_image(tmp_path / "other.png"))


def test_another_scale_is_possible_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert upscale(picture(tmp_path / "a.png"), "-o", tmp_path / "b.png", "--scale", 2, "--precision", "bf16") == 0
    assert read_image(tmp_path / "b.png").shape == (12, 10, 3)
    assert "the model was trained for a factor of 4, not 2" in capsys.readouterr().err


def test_outputs_within_the_input_folder_are_no_inputs(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    for _ in range(2):
        assert upscale(tmp_path / "in", "-o", tmp_path / "in/larger") == 0
    assert sorted(contents(tmp_path / "in")) == ["a.png", "larger/a.png"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.png", "-o", "out"], "missing.png does not exist"),
        (["empty", "-o", "out"], "empty holds no image"),
        (["in", "-o", "in"], "the output folder in is also an input"),
        (["in/a.png", "-o", "in"], "inputs would be overwritten"),
        (["in/a.png", "-o", "in/a.png", "--overwrite"], "inputs would be overwritten"),
        (["in", "-o", "file.txt"], "the output file.txt is a file; give a folder"),
        (["in", "-o", "file.txt/out"], "file.txt"),
        (["in", "other", "-o", "out"], "in/a.png and other/a.png would both become"),
        (["two", "-o", "out", "--format", "png"], "two/a.jpg and two/a.png would both become"),
        (["file.txt", "-o", "out"], "cannot write .txt; choose a --format"),
        (["in/a.png", "-o", "b.png", "--format", "jpg"], "b.png is not what the format jpg says"),
        (["in", "-o", "out", "--seed", "-1"], "--seed must not be negative"),
        (["in", "-o", "out", "--steps", "0"], "num_inference_steps: expected 1 or more, got 0"),
        (["in", "-o", "out", "--model", "gone"], "gone/restoration.json not found"),
        (["in", "-o", "out", "--device", "nothing"], "--device nothing cannot be used"),
        (["in", "-o", "out", "--prompt", "a cat"], "give --text-encoder"),
        (["in", "-o", "out", "--prompt", "a", "--prompts", "b"], "--prompt and --prompts: give one of them"),
        (["in", "-o", "out", "--guidance-scale", "8"], "--guidance-scale has no effect without --prompt"),
        (["in", "-o", "out", "--negative-prompt", "x"], "--negative-prompt has no effect without --prompt"),
    ],
)
def test_mistakes_are_told_before_any_work(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "other/a.png", "two/a.png", "two/a.jpg"):
        picture(Path(name))
    Path("empty").mkdir()
    Path("file.txt").write_text("text")
    before = contents(tmp_path)
    assert upscale(*arguments) == 2
    assert says in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_disk_that_is_full_ends_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "in/a.png")
    picture(tmp_path / "in/b.png")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 2
    assert "cannot write" in capsys.readouterr().err
    assert contents(tmp_path / "out") == {}


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / f"in/{number}.png", (40, 40), seed=number)
    start = "from framer.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", start, "upscale", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    first = tmp_path / "out/0.png"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {name: content for name, content in contents(tmp_path / "out").items() if not name.endswith(".partial")}
    assert 0 < len(done) < 6
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 0
    assert upscale(tmp_path / "in", "-o", tmp_path / "whole") == 0
    results = contents(tmp_path / "out")
    assert results == contents(tmp_path / "whole")
    assert all(results[name] == content for name, content in done.items())


class StandInEncoder:
    """Embeddings that say how long the text is, of the base model's sizes."""

    def encode(self, texts: list[str]) -> TextEmbeddings:
        lengths = torch.tensor([float(len(text)) for text in texts])
        return TextEmbeddings(lengths.view(-1, 1, 1).expand(-1, 4, 32), lengths.view(-1, 1).expand(-1, 32))


@pytest.fixture
def text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(folder: Path, **settings: Any) -> StandInEncoder:
        assert folder == Path("encoder")
        return StandInEncoder()

    monkeypatch.setattr("framer.models.text_encoders.load_text_encoder", load)


@pytest.mark.usefixtures("text_encoder")
def test_each_image_has_the_text_of_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "deep/b"):
        picture(tmp_path / f"in/{name}.png")
        (tmp_path / f"texts/{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"texts/{name}.txt").write_text(f"the text of {name}\n", encoding="utf-8")
    common = ("--text-encoder", "encoder", "--guidance-scale", 4)
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--prompts", tmp_path / "texts", *common) == 0
    for name in ("a", "deep/b"):
        alone = tmp_path / f"alone/{name}.png"
        assert upscale(tmp_path / f"in/{name}.png", "-o", alone, "--prompt", f"the text of {name}", *common) == 0
        assert alone.read_bytes() == (tmp_path / f"out/{name}.png").read_bytes()
    assert (tmp_path / "out/a.png").read_bytes() != (tmp_path / "out/deep/b.png").read_bytes()
    (tmp_path / "texts/deep/b.txt").unlink()
    capsys.readouterr()
    arguments = (tmp_path / "in", "-o", tmp_path / "again", "--prompts", tmp_path / "texts", *common)
    assert upscale(*arguments) == 2
    assert "1 of 2 texts are missing" in capsys.readouterr().err
    (tmp_path / "texts/deep/b.txt").write_bytes(b"caf\xe9")
    assert upscale(*arguments) == 2
    assert "b.txt is not UTF-8" in capsys.readouterr().err


@pytest.mark.usefixtures("text_encoder")
def test_an_encoder_for_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = TextEmbeddings(torch.zeros(1, 4, 768), torch.zeros(1, 32))
    monkeypatch.setattr(StandInEncoder, "encode", lambda self, texts: wide)
    source = picture(tmp_path / "a.png")
    assert upscale(source, "-o", tmp_path / "out", "--prompt", "x", "--text-encoder", "encoder") == 2
    assert "embeddings of 768 channels, pooled 32; the model takes 32, pooled 32" in capsys.readouterr().err


def test_a_link_to_an_input_is_an_input(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(source)
    with pytest.raises(UserError, match="inputs would be overwritten"):
        plan_jobs([source], tmp_path / "b.png")


@pytest.mark.parametrize("family", ["sd21", "sd35"])
def test_a_text_encoders_own_embeddings_reach_the_model(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"sd21": text_folders.sd21_texts, "sd35": text_folders.sd3_texts}[family](tmp_path / "texts")
    encoder = load_text_encoder(texts, device=torch.device("cpu"))
    settings: dict[str, object] = {"conditioning": "concat", "latents": "vae", "scale": 4, "tile": 32, "text_tokens": 1}
    if family == "sd21":
        model = family_folders.UNet2DConditionModel.from_pretrained(family_folders.sd21(tmp_path / "unet"))
        config = {**model.config, "cross_attention_dim": encoder.sizes.prompt, "in_channels": 8}
        settings |= {"objective": "diffusion", "prediction_type": "epsilon"}
    else:
        model = family_folders.SD3Transformer2DModel.from_pretrained(family_folders.sd35(tmp_path / "transformer"))
        config = {**model.config, "joint_attention_dim": encoder.sizes.prompt, "in_channels": 8}
        config["pooled_projection_dim"] = encoder.sizes.pooled
        settings |= {"objective": "flow_matching", "prediction_type": "velocity", "timestep_shift": 3.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        type(model).from_config(config).save_pretrained(tmp_path / "export")
    settings["vae"] = str(family_folders.autoencoder(tmp_path / "vae"))
    (tmp_path / "export/restoration.json").write_text(json.dumps(settings))
    source = picture(tmp_path / "a.png", (8, 10))
    common = ("--model", tmp_path / "export", "--steps", 2, "--text-encoder", texts)
    results = {}
    for name, options in {
        "one": ("--prompt", "a photo"),
        "same": ("--prompt", "a photo", "--guidance-scale", 1, "--negative-prompt", "blur"),
        "other": ("--prompt", "the cat"),
        "guided": ("--prompt", "a photo", "--guidance-scale", 9),
    }.items():
        assert upscale(source, "-o", tmp_path / f"{name}.png", *common, *options) == 0, capsys.readouterr().err
        results[name] = (tmp_path / f"{name}.png").read_bytes()
    assert results["one"] == results["same"]
    assert len(set(results.values())) == 3
