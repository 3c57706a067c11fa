"""One run, from its configuration to its report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import read_steps, tiny_config, train

from framer.config.loading import load_config
from framer.config.training import TrainConfig

TRACKERS = {"tensorboard": True, "wandb": {"project": "tests"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(folder, training={"sample_steps": 2}, data={"workers": 1}, trackers=TRACKERS)
    result = train("--config", str(config), "optimizer.lr=5e-4")
    assert result.returncode == 0, result.stderr
    assert "report.md" in result.stdout
    return folder / "run"


def test_layout(run: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "checkpoints", "samples", "plots", "report.md", "export"):
        assert (run / name).exists(), name
    assert list((run / "tensorboard").iterdir())
    leftovers = [p for p in run.rglob("*") if p.name.startswith(".") or "partial" in p.name]
    assert leftovers == []


def test_trackers_show_the_sample_sheets(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [image.step for image in events.Images("samples")] == [2, 4]
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/samples_*.png"))) == 2


def test_deepspeeds_configuration_is_written_with_its_defaults(run: Path) -> None:
    config = json.loads((run / "deepspeed.json").read_text())
    assert config["given"]["gradient_clipping"] == config["resolved"]["gradient_clipping"] == 1.0
    assert config["resolved"]["train_batch_size"] == 4
    assert config["resolved"]["zero_config"]["overlap_comm"] is not None


def test_metrics_have_what_other_tools_read(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["loss"] == pytest.approx(line["noise_loss"] + line["framer_loss"], rel=1e-5)
        assert line["gradient_norm"] > 0
        assert line["time"]["images_per_second"] > 0
        assert len(line["layers"]["names"]) == len(line["layers"]["weight_lf"]) == 3


def test_resolved_config_reloads_with_the_override(run: Path) -> None:
    config = load_config(TrainConfig, run / "config.yaml")
    assert config.optimizer.lr == 5e-4
    assert config.framer.weight == 0.1


def test_report_shows_pictures_that_exist(run: Path) -> None:
    report = (run / "report.md").read_text()
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", report)
    assert {Path(link).parts[0] for link in links} == {"samples", "plots"}
    assert len(links) == 4
    for link in links:
        with Image.open(run / link) as picture:
            assert min(picture.size) > 200
    for name in ("astronaut", "chelsea", "flower", "grace_hopper"):
        assert name in report.replace("\\_", "_")


def test_export_loads_in_diffusers_alone(run: Path) -> None:
    model = SD3Transformer2DModel.from_pretrained(run / "export", local_files_only=True)
    assert model.config.in_channels == 9
    assert model.config.out_channels == 3
    with torch.no_grad():
        output = model(
            hidden_states=torch.randn(1, 9, 32, 32),
            encoder_hidden_states=torch.zeros(1, 1, model.config.joint_attention_dim),
            pooled_projections=torch.zeros(1, model.config.pooled_projection_dim),
            timestep=torch.tensor([500.0]),
        ).sample
    assert output.shape == (1, 3, 32, 32)
    assert output.abs().sum() > 0


def test_trains_on_from_its_own_export(run: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, model={"pretrained": str(run / "export")}, training={"max_steps": 1})
    result = train("--config", str(config), "evaluation.allow_training_photographs=true")
    assert result.returncode == 0, result.stderr
    # What it began with is what the run before ended with, and is told from what one more step changed.
    begun, ended = tmp_path / "run/samples/step-00000000.json", run / "samples/step-00000004.json"
    assert json.loads(begun.read_text()) == json.loads(ended.read_text())
    mean = json.loads(begun.read_text())["mean"]["psnr_sr"]
    report = (tmp_path / "run/report.md").read_text()
    assert f"Before training: SR {mean:.2f} dB" in report
    assert "## SR against bicubic on photographs that may have been trained on" in report
    assert not (run / "samples/step-00000000.json").exists()  # from random weights
    assert "Before training" not in (run / "report.md").read_text()


def test_without_framer(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, training={"max_steps": 2})
    result = train("--config", str(config), "framer.enabled=false")
    assert result.returncode == 0, result.stderr
    for step in read_steps(tmp_path):
        assert step["framer_loss"] is None
        assert step["loss"] == step["noise_loss"]
    report = (tmp_path / "run/report.md").read_text()
    assert "no FRAMER" in report
    assert "modulation.png" not in report
    assert "similarity.png" in report


def test_a_folder_of_photographs(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs" / "nested"
    photographs.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        pixels = torch.randint(0, 256, (96, 80, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(photographs / f"{i}.png")
    (photographs / "broken.jpg").write_bytes((photographs / "0.png").read_bytes()[:500])
    config = tiny_config(
        tmp_path, data={"train": str(photographs.parent), "on_broken": "skip"}, training={"max_steps": 1}
    )
    result = train("--config", str(config))
    assert result.returncode == 0, result.stderr
    assert "broken.jpg" in result.stderr
