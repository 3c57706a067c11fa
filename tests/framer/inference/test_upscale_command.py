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
from safetensors.torch import load_file, save_file

from framer import cli
from framer.data.images import read_image
from framer.errors import UserError
from framer.inference.jobs import plan_jobs
from framer.inference.pipeline import FramerUpscalePipeline
from framer.inference.prompts import read_prompts
from framer.inference.records import RECORD_FILE, MadeFrom, Records
from framer.inference.upscale import Upscaler
from framer.models.folders import BASE_FOLDER
from framer.models.text import NULL_TEXT_FILE, TextEmbeddings, write_text_embeddings
from framer.models.text_encoders import TextEncoder, load_text_encoder


def upscale(*arguments: object) -> int:
    return cli.main(["upscale", *map(str, arguments)])


def picture(path: Path, size: tuple[int, int] = (6, 5), *, seed: int = 0, mode: str = "RGB") -> Path:
    """Noise of a height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(samples).convert(mode).save(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but the records of results."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD_FILE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


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
    capsys.readouterr()
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 0
    assert capsys.readouterr().out == "1 images upscaled, 1 were there already (--overwrite makes them again)\n"
    assert contents(tmp_path / "out") == before
    (tmp_path / "out/b.png").write_bytes(b"mine")
    (tmp_path / "out/a.png").unlink()
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 2
    assert "b.png (changed since it was made)" in capsys.readouterr().err
    assert contents(tmp_path / "out") == {"b.png": b"mine"}
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
        (["in/a.png", "other", "-o", "out"], "in/a.png and other/a.png would both become"),
        (["two", "-o", "out", "--format", "png"], "two/a.jpg and two/a.png would both become"),
        (["file.txt", "-o", "out"], "cannot write .txt; choose a --format"),
        (["in/a.png", "-o", "b.png", "--format", "jpg"], "b.png is not what the format jpg says"),
        (["in", "-o", "out", "--seed", "-1"], "--seed must not be negative"),
        (["in", "-o", "out", "--steps", "0"], "num_inference_steps: expected 1 or more, got 0"),
        (["in", "-o", "out", "--model", "gone"], "gone/restoration.json not found"),
        (["in", "-o", "out", "--device", "nothing"], "--device nothing cannot be used: "),
        pytest.param(
            ["in", "-o", "out", "--device", "mps"],
            "--device mps cannot be used: Could not run",
            marks=pytest.mark.skipif(sys.platform == "darwin", reason="there may be one"),
        ),
        (["in", "-o", "out", "--device", "meta"], "--device meta cannot be used: "),
        (["in", "nest", "-o", "out"], "results would lie in others as if these were folders; rename"),
        (["in", "-o", "out", "--prompt", "a cat"], "give --text-encoder"),
        (["in", "-o", "out", "--prompt", "a", "--prompts", "b"], "--prompt and --prompts: give one of them"),
        (["in", "-o", "out", "--guidance-scale", "8"], "guidance needs something to guide away from"),
        (["in", "-o", "out", "--negative-text-embeddings", "x"], "guidance needs something to guide away from"),
        (["in", "-o", "out", "--guidance-scale", "nan"], "--guidance-scale nan: expected a finite number"),
        (
            ["in", "-o", "out", "--prompt", "a", "--text-encoder", "b", "--guidance-scale=-inf"],
            "--guidance-scale -inf: expected a finite number",
        ),
        (
            ["in", "-o", "out", "--prompt", "a", "--text-encoder", "b", "--negative-prompt", "c"],
            "--negative-prompt has no effect without a --guidance-scale other than 1",
        ),
        (["in", "-o", "out", "--vae", "gone"], "has no use for vae: a vae is for models of an autoencoder's latents"),
        (["in", "-o", "out", "--vae", "v", "--pretrained", "p"], "has no use for pretrained and vae"),
        (["in", "-o", "out", "--text-embeddings", "gone"], "gone not found"),
        (["in", "-o", "out", "--vae-tile", "512"], "VAE tiles have no effect on a model without an autoencoder"),
        (["in", "-o", "out", "--vae-shared-statistics"], "VAE tiles have no effect on a model without an autoencoder"),
        (["in", "-o", "out", "--vae-decoder-tile", "0"], "VAE tile of 0 latent pixels: expected 1 or more"),
        (["in/a.png", "-o", "o_d.gif"], "o_d.gif is named like a file: cannot write .gif; known are .png"),
        (["in/a.png", "other/b.png", "-o", "o.png"], "in/a.png other/b.png cannot become one file; give a folder"),
        (["in", "-o", "o.v2"], "o.v2 is named like a file"),
        (["in", "-o", "taken"], "folders have the names of results, give another output: taken/a.png"),
        (["in", "-o", "out", "--negative-prompt", "x"], "--negative-prompt has no effect without --prompt"),
    ],
)
def test_mistakes_are_told_before_any_work(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken/a.png").mkdir(parents=True)
    for name in ("in/a.png", "nest/a.png/b.png", "other/a.png", "other/b.png", "two/a.png", "two/a.jpg"):
        picture(Path(name))
    Path("empty").mkdir()
    Path("file.txt").write_text("text")
    before = contents(tmp_path)
    assert upscale(*arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
    assert len(error) < 400
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["", "-o", "out"],
        ["a.png", "-o", ""],
        ["a.png", "-o", "out", "--prompt", "x", "--text-encoder", ""],
        ["a.png", "-o", "out", "--vae", ""],
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(Path("a.png"))
    with pytest.raises(SystemExit, match="2"):
        upscale(*arguments)
    assert "the path is empty" in capsys.readouterr().err
    assert contents(tmp_path).keys() == {"a.png"}


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


def test_results_of_another_image_are_not_taken_for_ones_of_this(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = picture(tmp_path / "A/x.png"), picture(tmp_path / "B/x.png", seed=1)
    assert upscale(one, "-o", tmp_path / "xo") == 0
    before = contents(tmp_path / "xo")
    assert upscale(other, "-o", tmp_path / "xo") == 2
    err = capsys.readouterr().err
    assert "x.png (made from another image)" in err
    assert "--overwrite" in err
    assert contents(tmp_path / "xo") == before
    assert upscale(other, "-o", tmp_path / "xo", "--overwrite") == 0
    assert upscale(other, "-o", tmp_path / "xo") == 0
    assert capsys.readouterr().out.endswith("0 images upscaled, 1 were there already (--overwrite makes them again)\n")


def test_results_of_other_settings_are_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "in/a.png")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 0
    picture(tmp_path / "in/b.png")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--seed", 3, "--colour-fix", "adain") == 2
    assert 'a.png (with --colour-fix "none", not "adain", with --seed 0, not 3)' in capsys.readouterr().err
    assert list(contents(tmp_path / "out")) == ["a.png"]
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--tile-batch", 1) == 0


def test_results_of_another_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = picture(tmp_path / "a.png")
    shutil.copytree(BASE_FOLDER, tmp_path / "moved")
    assert upscale(source, "-o", tmp_path / "out") == 0
    assert upscale(source, "-o", tmp_path / "out", "--model", tmp_path / "moved") == 0
    assert "1 were there already" in capsys.readouterr().out
    weights = tmp_path / "moved/diffusion_pytorch_model.safetensors"
    changed = load_file(weights)
    changed[next(iter(changed))] += 1
    save_file(changed, weights)
    assert upscale(source, "-o", tmp_path / "out", "--model", tmp_path / "moved") == 2
    assert "a.png (by another model)" in capsys.readouterr().err


def test_files_that_the_command_did_not_make_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, mine = picture(tmp_path / "a.png"), picture(tmp_path / "out/a.png", seed=2)
    before = mine.read_bytes()
    assert upscale(source, "-o", tmp_path / "out") == 2
    assert "a.png (not made by this command)" in capsys.readouterr().err
    assert mine.read_bytes() == before


def test_killed_between_a_record_and_its_result(tmp_path: Path) -> None:
    records, output = Records(), tmp_path / "a.png"
    old, new = MadeFrom("1", "m", {"seed": 0}), MadeFrom("1", "m", {"seed": 1})
    records.add(output, b"old", old)
    output.write_bytes(b"old")
    Records().add(output, b"new", new)
    assert Records().problem(output, old) is None
    assert Records().problem(output, new) == "with --seed 0, not 1"
    path = tmp_path / RECORD_FILE
    path.write_bytes(path.read_bytes()[:-9])  # within the line of the new result
    Records().add(tmp_path / "b.png", b"other", new)
    (tmp_path / "b.png").write_bytes(b"other")
    assert Records().problem(output, old) is None
    assert Records().problem(tmp_path / "b.png", new) is None


def test_options_are_checked_where_all_results_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = picture(tmp_path / "a.png")
    assert upscale(source, "-o", tmp_path / "out") == 0
    for options in (("--device", "nothing"), ("--scale", 0), ("--tile", 33), ("--model", "gone")):
        assert upscale(source, "-o", tmp_path / "out", *options) == 2, options
    assert "gone/restoration.json not found" in capsys.readouterr().err


def test_results_that_memory_has_no_room_for_fail_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "in/a.png", (200, 150))
    picture(tmp_path / "in/b.png")
    monkeypatch.setattr("framer.inference.memory.available_memory", lambda: 20 * 2**20)
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "in/a.png: 600x800 pixels need about 0.0291 GiB of memory, and 0.0195 are" in capsys.readouterr().err
    assert list(contents(tmp_path / "out")) == ["b.png"]


def test_a_scale_that_no_memory_has_room_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert upscale(picture(tmp_path / "a.png"), "-o", tmp_path / "out", "--scale", 100_000_000) == 1
    assert "a.png: 500000000x600000000 pixels need about" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_an_allocation_that_fails_is_one_images(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        picture(tmp_path / f"in/{name}.png", seed=ord(name))
    original = Upscaler.picture
    errors = [error]

    def picture_or_error(self: Upscaler, *arguments: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return original(self, *arguments, **options)

    monkeypatch.setattr(Upscaler, "picture", picture_or_error)
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "in/a.png: there is not enough memory for 20x24 pixels" in capsys.readouterr().err
    assert list(contents(tmp_path / "out")) == ["b.png"]


def test_a_file_that_cannot_be_written_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a" * 250 + ".png"  # with the name of the unfinished file it is longer than a name can be
    picture(tmp_path / "in" / name)
    picture(tmp_path / "in/b.png")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "cannot write" in capsys.readouterr().err
    assert list(contents(tmp_path / "out")) == ["b.png"]


def test_exif_that_cannot_be_written_does_not_end_the_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[0x013B] = "A" * 70_000
    (tmp_path / "in").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "in/a.png", exif=exif)
    picture(tmp_path / "in/b.png")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--format", "jpg") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "it is left out" in line]
    assert "a.jpg: 16x16 (EXIF of 70" in line


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

    identity = "lengths"

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
    assert "1 of 2 photographs have no text in" in capsys.readouterr().err
    (tmp_path / "texts/deep/b.txt").write_bytes(b"caf\xe9")
    assert upscale(*arguments) == 2
    assert "b.txt is not UTF-8" in capsys.readouterr().err


@pytest.mark.usefixtures("text_encoder")
def test_a_text_is_of_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "a.jpg"):
        picture(tmp_path / "in" / name)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("a cat")
    common = (tmp_path / "in", "-o", tmp_path / "out", "--text-encoder", "encoder", "--prompts", tmp_path / "texts")
    assert upscale(*common) == 2
    assert f"{tmp_path}/in/a.jpg and {tmp_path}/in/a.png would both have the text a.txt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_texts_are_read_as_captions_are(tmp_path: Path) -> None:
    jobs = plan_jobs([picture(tmp_path / "in/deep/a.png").parent.parent], tmp_path / "out")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n")
    assert read_prompts(tmp_path / "texts", jobs) == {"deep/a": "a cat"}


@pytest.mark.usefixtures("text_encoder")
def test_other_texts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = (picture(tmp_path / "a.png"), "-o", tmp_path / "out", "--text-encoder", "encoder")
    assert upscale(*common, "--prompt", "a cat") == 0
    assert upscale(*common, "--prompt", "a dog") == 2
    assert 'a.png (with --prompt "a cat", not "a dog")' in capsys.readouterr().err


def test_guidance_away_from_text_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, results = picture(tmp_path / "a.png"), {}
    write_text_embeddings(tmp_path / "away", TextEmbeddings(torch.ones(4, 32), torch.ones(32)))
    write_text_embeddings(tmp_path / "wide", TextEmbeddings(torch.ones(4, 9), torch.ones(32)))
    for scale in (2, 3):
        options = ("--guidance-scale", scale, "--negative-text-embeddings")
        assert upscale(source, "-o", tmp_path / f"{scale}.png", *options, tmp_path / "away") == 0
        results[scale] = (tmp_path / f"{scale}.png").read_bytes()
    assert upscale(source, "-o", tmp_path / "plain.png") == 0
    assert len({*results.values(), (tmp_path / "plain.png").read_bytes()}) == 3
    assert upscale(source, "-o", tmp_path / "out", *options, tmp_path / "wide") == 2
    assert "has shape [4, 9]; expected [tokens, 32]" in capsys.readouterr().err


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


def export_for(encoder: TextEncoder, family: str, folder: Path, **own: object) -> Path:
    """A model of random weights that takes the encoder's texts."""
    settings: dict[str, object] = {"conditioning": "concat", "latents": "vae", "scale": 4, "tile": 32, **own}
    if family == "sd21":
        model = family_folders.UNet2DConditionModel.from_pretrained(family_folders.sd21(folder / "unet"))
        config = {**model.config, "cross_attention_dim": encoder.sizes.prompt, "in_channels": 8}
        settings |= {"objective": "diffusion", "prediction_type": "epsilon"}
    else:
        model = family_folders.SD3Transformer2DModel.from_pretrained(family_folders.sd35(folder / "transformer"))
        config = {**model.config, "joint_attention_dim": encoder.sizes.prompt, "in_channels": 8}
        config["pooled_projection_dim"] = encoder.sizes.pooled
        settings |= {"objective": "flow_matching", "prediction_type": "velocity", "timestep_shift": 3.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        type(model).from_config(config).save_pretrained(folder / "export")
    settings["vae"] = str(family_folders.autoencoder(folder / "vae"))
    (folder / "export/restoration.json").write_text(json.dumps(settings))
    return folder / "export"


@pytest.mark.parametrize("family", ["sd21", "sd35"])
def test_a_text_encoders_own_embeddings_reach_the_model(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"sd21": text_folders.sd21_texts, "sd35": text_folders.sd3_texts}[family](tmp_path / "texts")
    encoder = load_text_encoder(texts, device=torch.device("cpu"))
    export = export_for(encoder, family, tmp_path, text_tokens=1)
    source = picture(tmp_path / "a.png", (8, 10))
    common = ("--model", export, "--steps", 2, "--text-encoder", texts)
    results = {}
    for name, options in {
        "one": ("--prompt", "a photo"),
        "same": ("--prompt", "a photo", "--guidance-scale", 1),
        "other": ("--prompt", "the cat"),
        "guided": ("--prompt", "a photo", "--guidance-scale", 9),
    }.items():
        assert upscale(source, "-o", tmp_path / f"{name}.png", *common, *options) == 0, capsys.readouterr().err
        results[name] = (tmp_path / f"{name}.png").read_bytes()
    assert results["one"] == results["same"]
    assert len(set(results.values())) == 3


def test_a_prompt_is_as_long_as_the_texts_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, device = text_folders.sd3_texts(tmp_path / "texts"), torch.device("cpu")
    null, usual = (load_text_encoder(texts, device=device, tokens=tokens).encode([""]) for tokens in (100, None))
    encoder = load_text_encoder(texts, device=device)
    export = export_for(encoder, "sd35", tmp_path, text_tokens=100, text_embeddings=None, null_text=NULL_TEXT_FILE)
    for path, text in ((export / NULL_TEXT_FILE, null), (tmp_path / "usual", usual)):
        write_text_embeddings(path, TextEmbeddings(text.prompt[0], text.pooled[0]))
    seen: set[int] = set()

    def watch(self: object, *arguments: Any, encoder_hidden_states: torch.Tensor, **settings: Any) -> Any:
        seen.add(encoder_hidden_states.shape[1])
        return forward(self, *arguments, encoder_hidden_states=encoder_hidden_states, **settings)

    forward = family_folders.SD3Transformer2DModel.forward
    monkeypatch.setattr(family_folders.SD3Transformer2DModel, "forward", watch)
    source = picture(tmp_path / "a.png", (8, 10))
    common = (source, "--model", export, "--steps", 1, "--guidance-scale", 3)
    prompted = ("--text-encoder", texts, "--prompt", "a photo")
    assert upscale(*common, *prompted, "-o", tmp_path / "b.png") == 0, capsys.readouterr().err
    pipeline = FramerUpscalePipeline.from_export(export, text_encoder=texts)
    made = pipeline(Image.open(source), prompt="a photo", guidance_scale=3.0, num_inference_steps=1)
    assert np.array_equal(np.asarray(made.images[0]), np.asarray(Image.open(tmp_path / "b.png")))
    assert seen == {100}
    refused = f"{tmp_path / 'usual'}: 154 text tokens, but the model was trained with 100"
    assert upscale(*common, "-o", tmp_path / "c.png", "--negative-text-embeddings", tmp_path / "usual") == 2
    assert refused in capsys.readouterr().err
    assert upscale(source, "--model", export, "-o", tmp_path / "c.png", "--text-embeddings", tmp_path / "usual") == 2
    assert refused in capsys.readouterr().err
