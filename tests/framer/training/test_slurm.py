"""The batch script for Slurm, run by bash with stand-ins for Slurm's commands."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from slurm_stand_in import install, start_job

# In place of training: says which rank it is, and ends as a run does that was told to save.
_PYTHON = """#!/bin/bash
trap 'echo "told" >> "{log}"; exit 75' USR1
echo "rank $SLURM_PROCID of $SLURM_NTASKS at $MASTER_ADDR:$MASTER_PORT: $*" >> "{log}"
for _ in $(seq 600); do {each}; sleep 0.05; done
exit 4
"""


def _stand_in_for_training(folder: Path, each: str = "true") -> Path:
    log = folder / "log"
    path = folder / "python"
    path.write_text(_PYTHON.format(log=log, each=each))
    path.chmod(0o755)
    return log


def _wait_for_lines(log: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not (log.is_file() and len(log.read_text().splitlines()) >= count):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_task_is_told_its_place_and_rank_zeros_address(tmp_path: Path) -> None:
    install(tmp_path)
    log = _stand_in_for_training(tmp_path, each="exit 0")
    job = start_job(tmp_path, "--config", "x.yaml", "a=1 2")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output
    expected = [f"rank {rank} of 2 at 127.0.0.1:24711: -u train.py --config x.yaml a=1 2" for rank in (0, 1)]
    assert sorted(log.read_text().splitlines()) == expected


def test_before_the_time_is_up_every_rank_saves_and_the_job_returns_to_the_queue(tmp_path: Path) -> None:
    requeued = install(tmp_path)
    log = _stand_in_for_training(tmp_path)
    job = start_job(tmp_path)
    _wait_for_lines(log, 2)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 75, output
    assert log.read_text().splitlines().count("told") == 2
    assert requeued.read_text() == "requeue 4711\n"


def test_a_cancelled_job_saves_and_does_not_return_to_the_queue(tmp_path: Path) -> None:
    requeued = install(tmp_path)
    log = _stand_in_for_training(tmp_path)
    job = start_job(tmp_path)
    _wait_for_lines(log, 2)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 75, output
    assert log.read_text().splitlines().count("told") == 2
    assert not requeued.exists()


@pytest.mark.parametrize("status", [0, 2, 130])
def test_another_exit_status_is_the_jobs(tmp_path: Path, status: int) -> None:
    requeued = install(tmp_path)
    _stand_in_for_training(tmp_path, each=f"exit {status}")
    job = start_job(tmp_path)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == status, output
    assert not requeued.exists()
