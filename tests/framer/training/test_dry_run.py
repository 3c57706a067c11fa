"""A dry run refuses what a real start would refuse, and leaves nothing behind."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from training_runs import TINY, tiny_config

from framer.analysis.history import read_metrics
from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.training.command import main
from framer.training.dry_run import checkpoint_bytes
from framer.training.evaluation import evaluated_before, evaluations_left, samples_due
from framer.training.trainer import Trainer


def _dry_run(config: Path, *arguments: str) -> int:
    return main(["--config", str(config), "--dry-run", *arguments])


def _summary(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    lines = capsys.readouterr().out.partition("the run would start:\n")[2].splitlines()
    return {line[2:14].strip(): line[15:] for line in lines}


def _content(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_a_new_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(tmp_path, trackers={"tensorboard": True})
    assert _dry_run(config) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    summary = _summary(capsys)
    assert summary["model"] == "SD3Transformer2DModel, 44,816 parameters, 44,816 of them trained"
    assert summary["tokens"] == "64 a crop (8 x 8)"
    assert summary["engine"] == "DeepSpeed ZeRO 0, fp32, cpu"
    assert summary["begins"] == "anew"
    assert summary["steps left"].startswith("4, about ")
    assert len(summary["loss"].split(", ")) == 2
    assert "images/s" in summary["step"]
    assert summary["evaluation"].startswith("4 crops x 1 time(s), about ")


@pytest.mark.parametrize(
    ("pretrained", "step", "times"), [(None, 0, 4), (None, 5, 3), (None, 19, 1), (None, 20, 1), ("base", 0, 5)]
)
def test_how_often_a_run_is_evaluated(pretrained: str | None, step: int, times: int) -> None:
    training = {"max_steps": 20, "sample_steps": 5}
    sections = {"output_dir": "x", "training": training, "model": {"pretrained": pretrained}}
    config = build_config(TrainConfig, sections, source="a test")
    assert evaluations_left(config, step=step) == times
    between = sum(samples_due(config, step=at) for at in range(step + 1, 21))
    assert times == between + 1 + evaluated_before(config, step=step)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has taken 2 steps, with its checkpoint."""
    folder = tmp_path_factory.mktemp("interrupted")
    assert main(["--config", str(tiny_config(folder)), "training.max_steps=2"]) == 0
    return folder


def test_a_run_that_would_go_on(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _content(interrupted)
    assert _dry_run(interrupted / "config.yaml") == 0
    assert _content(interrupted) == before
    summary = _summary(capsys)
    assert summary["begins"] == f"after step 2, from {interrupted}/run/checkpoints/step-00000002"
    assert summary["steps left"].startswith("2, about ")


def test_its_losses_are_those_of_the_run(interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = shutil.copytree(interrupted / "run", tmp_path / "run")
    assert _dry_run(tiny_config(tmp_path)) == 0
    losses = _summary(capsys)["loss"].split(", ")
    assert main(["--config", str(tmp_path / "config.yaml")]) == 0
    assert losses == [f"{step.loss:.4g}" for step in read_metrics(whole / "metrics.jsonl")[2:]]


def test_nothing_is_left_to_do(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _dry_run(interrupted / "config.yaml", "training.max_steps=2") == 0
    assert _summary(capsys)["steps left"] == "none"


def test_a_damaged_checkpoint_is_found(interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(interrupted / "run", tmp_path / "run")
    (weights,) = (tmp_path / "run").rglob("mp_rank_00_model_states.pt")
    weights.write_bytes(weights.read_bytes()[:1000])
    before = _content(tmp_path / "run")
    assert _dry_run(tiny_config(tmp_path)) == 2
    message = capsys.readouterr().err
    assert f"no checkpoint of this run is whole: {weights.parent}: mp_rank_00_model_states.pt" in message
    assert _content(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.resume=never", "training.resume=never, but .* holds step-00000002"),
        ("optimizer.lr=5e-5", "is of a run with other settings: optimizer.lr 0.001 .now 5e-05."),
        ("training.max_steps=1", "has taken 2 steps, more than training.max_steps 1"),
        ("data.train=/no/such/photographs", "/no/such/photographs"),
    ],
)
def test_what_a_start_would_refuse(
    interrupted: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _content(interrupted)
    assert _dry_run(interrupted / "config.yaml", override) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert _content(interrupted) == before


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert _dry_run(tiny_config(tmp_path), f"output_dir={tmp_path / 'file' / 'run'}") == 2
    assert f"output_dir: cannot write to {tmp_path / 'file'}: Not a directory" in capsys.readouterr().err


def test_a_disk_without_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two checkpoints of 525 KiB and an export of 175 KiB.
    for free, status in ((1_200_000, 2), (1_300_000, 0)):
        usage = namedtuple("usage", "free")(free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        assert _dry_run(tiny_config(tmp_path)) == status
    assert (
        "output_dir: 1.14 MiB are free on its disk, but checkpoints (training.checkpoints_kept 2, about 525 KiB each) "
        "and the export need 1.2 MiB" in capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("precision", "zero_stage", "decay"), [("fp32", 0, None), ("fp32", 2, None), ("bf16", 2, None), ("fp32", 2, 0.9)]
)
def test_the_estimate_of_a_checkpoint(tmp_path: Path, precision: str, zero_stage: int, decay: float | None) -> None:
    sections = {
        **TINY,
        "output_dir": str(tmp_path / "run"),
        "model": {"architecture": {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 32}},
        "training": {"max_steps": 1, "batch_size": 2, "precision": precision, "ema": {"decay": decay}},
        "deepspeed": {"zero_stage": zero_stage},
    }
    trainer = Trainer(build_config(TrainConfig, sections, source="test"))
    estimate = checkpoint_bytes(trainer)
    trainer.rehearse(1)
    trainer._save()
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").rglob("*.pt"))
    assert estimate == pytest.approx(size, rel=0.05)


def test_more_words_go_with_a_dry_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(tmp_path)
    assert main(["--config", str(config), "--verbose"]) == 2
    assert "give --dry-run too" in capsys.readouterr().err
    assert _dry_run(config, "--verbose") == 0
    assert '"deepspeed_version": "' in capsys.readouterr().out
