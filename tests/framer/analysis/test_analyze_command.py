"""``framer analyze`` from its command line to its files."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import family_folders
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from training_metrics import step_line

from framer.cli import main
from framer.models.folders import BASE_FOLDER

FAST = ["--timesteps", "300", "--max-tiles", "4"]


def analyze(*arguments: object) -> int:
    return main(["analyze", *map(str, arguments)])


def a_run(folder: Path, *, metrics: list[dict[str, Any]] | None = None, scale: float = 1.0) -> Path:
    """A run that exported the base model, its weights scaled."""
    shutil.copytree(BASE_FOLDER, folder / "export")
    weights = folder / "export" / "diffusion_pytorch_model.safetensors"
    save_file({name: scale * value for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    (folder / "config.yaml").write_text(f"output_dir: {folder}\n")
    if metrics is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def test_one_model_draws_what_one_model_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze("base", "-o", tmp_path, *FAST) == 0
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"fig2.png", "fig3.png", "fig5_teacher.png", "fig5_student.png", "fig5_depth.png", "fig9.png"}
    printed = capsys.readouterr().out
    assert "not drawn: Fig. 7: It compares models, and 1" in printed
    assert "not drawn: Fig. 8: base: no layers in its metrics.jsonl" in printed
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6 + 4
    depth = json.loads((tmp_path / "fig3.json").read_text())["base"]["300"]
    assert len(depth["lf"]) == len(depth["hf"]) == 7
    assert depth["depth"][-1] == pytest.approx(7 / 8)
    assert max(depth["lf"]) == depth["lf"][-1] > 0.9


def test_two_runs_are_compared_with_what_they_logged(tmp_path: Path) -> None:
    first = a_run(tmp_path / "with", metrics=[step_line(step, align=0.5) for step in range(1, 21)])
    second = a_run(tmp_path / "without", metrics=[step_line(step, align=1.0) for step in range(1, 21)], scale=0.9)
    out = tmp_path / "out"
    assert analyze(first, second, "-o", out, "--only", "fig7,fig8,fig9", "--labels", "A", "B", *FAST) == 0
    assert {path.name for path in out.glob("*.png")} == {"fig7.png", "fig8.png", "fig9.png"}
    assert set(json.loads((out / "fig7.json").read_text())) == {"A", "B"}
    logged = json.loads((out / "fig8.json").read_text())["logged"]
    assert logged["A"]["lf"][0] == [0.5] * 3
    assert logged["B"]["hf"][-1] == [1.0] * 3
    weights = json.loads((out / "fig9.json").read_text())["A"]["in_training"]
    assert weights[0]["weights"] == pytest.approx([0.4] * 3)
    with Image.open(out / "fig8.png") as picture:
        assert picture.width > 1000


def test_a_run_without_fam_shows_no_weights_that_it_did_not_use(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", metrics=[step_line(1, align=0.5)])
    (run / "config.yaml").write_text("output_dir: x\nframer: {fam: false}\n")
    assert analyze(run, "-o", tmp_path / "out", "--only", "fig9", *FAST) == 0
    assert "FAM was off" in json.loads((tmp_path / "out" / "fig9.json").read_text())["run"]["in_training"]


def test_the_numbers_are_the_same_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert analyze("base", "-o", tmp_path / name, "--only", "fig2,fig3", *FAST) == 0
    for file in ("fig2.json", "fig3.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_u_net_compares_the_stages_that_it_can_and_names_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = family_folders.sd21(tmp_path / "unet")
    vae = family_folders.autoencoder(tmp_path / "vae")
    (folder / "restoration.json").write_text(
        json.dumps(
            {
                "latents": "vae",
                "conditioning": "none",
                "scale": 4,
                "text_tokens": 1,
                "text_embeddings": None,
                "vae": str(vae),
                "vae_precision": "fp32",
                "tile": 32,
                "num_inference_steps": 1,
                "objective": "one_step",
                "timestep": 1,
            }
        )
    )
    moved = ("--vae", vae, "--pretrained", "nowhere")  # of another model of the same comparison, it may be
    assert analyze(folder, "-o", tmp_path / "out", "--only", "fig2,fig3", *moved, *FAST) == 0
    printed = capsys.readouterr().out
    assert "layers have maps of another shape" in printed
    depth = json.loads((tmp_path / "out" / "fig3.json").read_text())["unet"]
    assert list(depth) == ["1"]
    assert depth["1"]["layers"] == ["up_blocks.3"]
    assert (tmp_path / "out" / "fig2.png").is_file()
    assert "restores in one step: it was measured at t = 1" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base", "--only", "fig4"], "--only: fig4; the figures are fig2"),
        (["base", "--timesteps", "0"], "--timesteps: 0 is not from 1 to 999"),
        (["base", "--timesteps", "300", "300"], "names one twice"),
        (["base", "--max-tiles", "0"], "--max-tiles must be 1 or more, got 0"),
        (["base", "--cutoff", "1.5"], "--cutoff must be"),
        (["base", "--images", "nowhere"], "nowhere does not exist"),
        (["base", "--tile", "63"], "--tile 63 is not a multiple of the scale 4"),
        (["base", "--device", "abacus"], "--device: abacus is no device"),
        (["nowhere"], "nowhere: no such folder"),
        (["base", "--labels", " "], "--labels: a label is empty"),
    ],
)
def test_mistakes_are_told_before_any_model_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("framer.analysis.paper.analyze.load_model", None)
    assert analyze(*arguments, "-o", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_models_of_different_crops_need_a_tile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    file = run / "export" / "restoration.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tile": 32}))
    assert analyze("base", run, "-o", tmp_path / "out") == 2
    assert "base 64, run 32; choose with --tile" in capsys.readouterr().err


def one_image(folder: Path) -> list[object]:
    """A single small tile, the quickest analysis that there is."""
    (folder / "images").mkdir()
    image = folder / "images" / os.fsdecode(b"gradient\xff.png")  # a name that is no text is no hindrance
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(image)
    return ["--images", folder / "images", "--timesteps", "300"]


def one_step(export: Path) -> None:
    """Makes an export one of a model that restores in one step."""
    file = export / "restoration.json"
    settings = {name: value for name, value in json.loads(file.read_text()).items() if name != "timestep_shift"}
    file.write_text(json.dumps({**settings, "objective": "one_step", "prediction_type": "sample", "timestep": 500}))


def no_weights(export: Path) -> None:
    (export / "diffusion_pytorch_model.safetensors").unlink()


def damaged_configuration(export: Path) -> None:
    (export.parent / "config.yaml").write_text("framer: {fam: perhaps}\n")


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (one_step, ["--feature-space", "x0"], "second: --feature-space x0: the model was trained with"),
        (no_weights, [], "second: model.pretrained: "),
        (damaged_configuration, [], "framer.fam"),
        (str, ["--tile", "132"], "base, second: --tile 132: the model takes multiples of 4 pixels, at most 128"),
        (str, ["--tile", "4"], "base, second: the features cannot be compared"),
    ],
)
def test_every_model_is_checked_before_the_first_is_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Any,
    arguments: list[str],
    message: str,
) -> None:
    run = a_run(tmp_path / "run")
    spoil(run / "export")
    monkeypatch.setattr("framer.analysis.paper.analyze.load_model", None)
    assert analyze("base", run, "--labels", "base", "second", "-o", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_measured_is_drawn_where_a_later_model_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = a_run(tmp_path / "run", scale=float("nan")), tmp_path / "out"
    out.mkdir()
    (out / "fig7.png").touch()
    assert analyze("base", run, "-o", out, "--only", "fig3", *one_image(tmp_path)) == 1
    assert "failed: run could not be measured: the feature of" in capsys.readouterr().err
    assert list(json.loads((out / "fig3.json").read_text())) == ["base"]
    assert (out / "fig7.png").is_file(), "a picture that no analysis had written"
    assert "run could not be measured" in (out / "report.html").read_text()


def test_the_figures_of_an_earlier_analysis_do_not_stay_beside_a_new_report(tmp_path: Path) -> None:
    out, images = tmp_path / "out", one_image(tmp_path)
    out.mkdir()
    (out / "report.html").write_text("<!doctype html><title>FRAMER analysis: earlier</title>")
    for name in ("fig7.png", "fig7.json", "fig5_teacher.png", "notes.txt"):
        (out / name).touch()
    assert analyze("base", "-o", out, "--only", "fig9", *images) == 0
    assert {path.name for path in out.iterdir()} == {"report.html", "fig9.png", "fig9.json", "notes.txt"}


def test_an_earlier_analysis_stays_whole_where_the_new_one_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out, images = tmp_path / "out", one_image(tmp_path)
    out.mkdir()
    (out / "report.html").write_text("<!doctype html><title>FRAMER analysis: earlier</title>")
    (out / "fig9.png").touch()
    monkeypatch.setattr(os, "fsync", full)
    assert analyze("base", "-o", out, "--only", "fig9", *images) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"report.html", "fig9.png"}
    assert "earlier" in (out / "report.html").read_text()


def test_weights_that_are_spoiled_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run", scale=float("nan"))
    assert analyze(run, "-o", tmp_path / "out", *FAST) == 2
    assert "is not finite" in capsys.readouterr().err
