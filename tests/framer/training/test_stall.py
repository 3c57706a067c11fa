"""Batches that do not come."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_runs import TINY, start_training, tiny_config

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.data.workers import dead_workers_named
from framer.errors import UserError
from framer.training.stall import stall_warnings
from framer.training.trainer import Trainer


def test_waiting_longer_than_the_limit_warns_again_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    with stall_warnings(0.2, rank=3, workers=0):
        time.sleep(0.7)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(warnings) >= 2
    assert all(line.startswith("rank 3 has waited ") for line in warnings)
    assert "data.workers is 0" in warnings[0]
    time.sleep(0.4)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("seconds", [0, 60])
def test_no_warning_within_the_limit_or_where_none_is_asked_for(
    capsys: pytest.CaptureFixture[str], seconds: float
) -> None:
    with stall_warnings(seconds, rank=0, workers=0):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_slow_data_set_in_a_worker_is_reported_with_the_workers_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = {
        **TINY,
        "output_dir": str(tmp_path),
        "data": {**TINY["data"], "workers": 1},
        "training": {**TINY["training"], "max_steps": 1},
        "health": {"stall_seconds": 0.3},
    }
    trainer = Trainer(build_config(TrainConfig, sections, source="test"))
    make = type(trainer.dataset).sample

    class Slow(type(trainer.dataset)):  # type: ignore[misc]
        def sample(self, *place: int) -> Any:
            time.sleep(0.3)
            return make(self, *place)

    trainer.dataset.__class__ = Slow
    trainer.train()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "has waited" in line]
    assert warnings
    assert "rank 0 has waited" in warnings[0]
    assert "its 1 data workers: " in warnings[0]
    assert "sleeping" in warnings[0]
    assert "copy the photographs to a local disk" in warnings[0]


def test_other_errors_pass() -> None:
    def fail() -> None:
        with dead_workers_named():
            raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        fail()


def test_a_killed_data_worker_is_a_clear_error(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data={"workers": 1}, training={"max_steps": 10_000, "checkpoint_steps": 10_000})
    process = start_training("--config", str(config))
    metrics = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    trainer = psutil.Process(process.pid)
    (worker,) = [child for child in trainer.children() if child.cmdline() == trainer.cmdline()]  # forked from it
    worker.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    message = errors[errors.index("error: ") :]
    assert message.startswith("error: a data worker has died: ")
    assert "ran out of memory" in message
    assert "Traceback" not in message


def test_the_error_names_the_cause() -> None:
    def fail() -> None:
        with dead_workers_named():
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that\n ...")

    with pytest.raises(UserError, match=r"pid 7\) is killed by signal: Bus error.*/dev/shm"):
        fail()
