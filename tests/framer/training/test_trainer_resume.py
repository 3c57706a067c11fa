"""Killed and continued: the same numbers, bit for bit."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import read_steps, start_training, tiny_config, train

from framer.training.command import main

STEPS = {"max_steps": 12, "checkpoint_steps": 3}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    result = train("--config", str(tiny_config(folder, training=STEPS)))
    assert result.returncode == 0, result.stderr
    return folder


def _kill_after(folder: Path, config: Path, step: int) -> None:
    process = start_training("--config", str(config))
    metrics = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= step):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def _assert_equal(folder: Path, other: Path) -> None:
    assert read_steps(folder) == read_steps(other)
    name = "run/export/diffusion_pytorch_model.safetensors"
    weights, expected = load_file(folder / name), load_file(other / name)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in weights)
    table = max((folder / "run/samples").glob("*.json")).name
    assert (folder / "run/samples" / table).read_text() == (other / "run/samples" / table).read_text()


@pytest.mark.parametrize("case", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_a_random_step_and_resumed(tmp_path: Path, uninterrupted: Path, case: int) -> None:
    config = tiny_config(tmp_path, training=STEPS)
    _kill_after(tmp_path, config, random.Random(case).randint(3, 10))
    result = train("--config", str(config))
    assert result.returncode == 0, result.stderr
    _assert_equal(tmp_path, uninterrupted)


def test_resumes_from_a_named_checkpoint_in_another_folder(tmp_path: Path, uninterrupted: Path) -> None:
    checkpoint = uninterrupted / "run/checkpoints/step-00000009"
    config = tiny_config(tmp_path, training={**STEPS, "resume": str(checkpoint)})
    result = train("--config", str(config))
    assert result.returncode == 0, result.stderr
    assert read_steps(tmp_path) == read_steps(uninterrupted)[9:]


def test_a_finished_run_only_writes_its_report_again(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, training={"max_steps": 2})
    assert train("--config", str(config)).returncode == 0
    steps = read_steps(tmp_path)
    (tmp_path / "run/report.md").unlink()
    assert train("--config", str(config)).returncode == 0
    assert (tmp_path / "run/report.md").is_file()
    assert read_steps(tmp_path) == steps


def test_retention_keeps_the_newest(uninterrupted: Path) -> None:
    names = sorted(path.name for path in (uninterrupted / "run/checkpoints").iterdir())
    assert names == ["step-00000009", "step-00000012"]


def test_never_refuses_to_overwrite(uninterrupted: Path) -> None:
    config = uninterrupted / "config.yaml"
    result = train("--config", str(config), "training.resume=never")
    assert result.returncode == 2
    assert "step-00000012" in result.stderr
    assert "training.resume=auto" in result.stderr


def test_checkpoint_of_another_model_size(tmp_path: Path, uninterrupted: Path) -> None:
    checkpoint = uninterrupted / "run/checkpoints/step-00000009"
    config = tiny_config(
        tmp_path,
        training={**STEPS, "resume": str(checkpoint)},
        model={"architecture": {"num_layers": 5, "num_attention_heads": 2, "attention_head_dim": 8}},
    )
    result = train("--config", str(config))
    assert result.returncode == 2
    assert "is of another model: num_layers 4 (now 5)" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_whose_only_checkpoint_is_damaged(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, training={"max_steps": 2})
    assert train("--config", str(config)).returncode == 0
    checkpoint = tmp_path / "run/checkpoints/step-00000002"
    file = max(checkpoint.glob("*.pt"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:1000])
    result = train("--config", str(config), "training.max_steps=4")
    assert result.returncode == 2
    assert f"no checkpoint of this run is whole: {checkpoint}: {file.name} has 1000 bytes instead of" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("framer.enabled=false", "framer.enabled True (now False)"),
        ("seed=7", "seed 3 (now 7)"),
        ("optimizer.lr=1e-5", "optimizer.lr 0.001 (now 1e-05)"),
        ("training.batch_size=2", "training.batch_size 4 (now 2)"),
        ("deepspeed.zero_stage=1", "deepspeed.zero_stage 0 (now 1)"),
    ],
)
def test_a_run_does_not_go_on_as_another_one(
    uninterrupted: Path, capsys: pytest.CaptureFixture[str], override: str, named: str
) -> None:
    before = (uninterrupted / "run/report.md").read_text(), (uninterrupted / "run/config.yaml").read_text()
    assert main(["--config", str(uninterrupted / "config.yaml"), override]) == 2
    message = capsys.readouterr().err
    assert named in message
    assert "choose another output_dir" in message
    assert before == ((uninterrupted / "run/report.md").read_text(), (uninterrupted / "run/config.yaml").read_text())


def test_an_older_checkpoint_beside_later_ones(uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = uninterrupted / "run/checkpoints/step-00000009"
    assert main(["--config", str(uninterrupted / "config.yaml"), f"training.resume={checkpoint}"]) == 2
    assert "holds step-00000012, later than step-00000009" in capsys.readouterr().err
    assert (uninterrupted / "run/checkpoints/step-00000012").is_dir()


def test_what_a_kill_while_saving_left_is_cleared(uninterrupted: Path) -> None:
    leftover = uninterrupted / "run/checkpoints/.unfinished-step-00000011"
    leftover.mkdir()
    (leftover / "half.pt").write_bytes(b"0")
    assert main(["--config", str(uninterrupted / "config.yaml")]) == 0
    assert not leftover.exists()
