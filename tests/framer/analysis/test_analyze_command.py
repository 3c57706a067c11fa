"""``framer analyze`` from its command line to its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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
    assert analyze(folder, "-o", tmp_path / "out", "--only", "fig2,fig3", *FAST) == 0
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


def test_weights_that_are_spoiled_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run", scale=float("nan"))
    assert analyze(run, "-o", tmp_path / "out", *FAST) == 2
    assert "is not finite" in capsys.readouterr().err
