"""The batch script for Slurm, run by bash with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_stand_in import NODES, install
from training_runs import REPOSITORY, free_port, read_steps, tiny_config, train_on_ranks

SCRIPT = REPOSITORY / "configs" / "slurm" / "train.sbatch"

# In place of training: says which rank it is, and ends as a run does that was told to save.
_PYTHON = """#!/bin/bash
echo "rank $SLURM_PROCID of $SLURM_NTASKS at $MASTER_ADDR:$MASTER_PORT: $*" >> "{log}"
trap 'echo "told" >> "{log}"; exit 75' USR1
for _ in $(seq 600); do {each}; sleep 0.05; done
exit 4
"""


def _job(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Starts the script as a batch job of two nodes with one task each."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MASTER_", "SLURM_"))}
    environment |= {
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": ",".join(NODES),
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "0",
        "SLURM_CPUS_PER_TASK": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        cwd=REPOSITORY,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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
    job = _job(tmp_path, "--config", "x.yaml", "a=1 2")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output
    expected = [f"rank {rank} of 2 at 127.0.0.1:24711: -u train.py --config x.yaml a=1 2" for rank in (0, 1)]
    assert sorted(log.read_text().splitlines()) == expected


def test_before_the_time_is_up_every_rank_saves_and_the_job_returns_to_the_queue(tmp_path: Path) -> None:
    requeued = install(tmp_path)
    log = _stand_in_for_training(tmp_path)
    job = _job(tmp_path)
    _wait_for_lines(log, 2)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 75, output
    assert log.read_text().splitlines().count("told") == 2
    assert requeued.read_text() == "requeue 4711\n"


def test_a_cancelled_job_saves_and_does_not_return_to_the_queue(tmp_path: Path) -> None:
    requeued = install(tmp_path)
    log = _stand_in_for_training(tmp_path)
    job = _job(tmp_path)
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
    job = _job(tmp_path)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == status, output
    assert not requeued.exists()


@pytest.mark.slow
def test_two_tasks_train_what_two_ranks_train(tmp_path: Path) -> None:
    install(tmp_path / "bin")
    settings = {"training": {"batch_size": 2}, "deepspeed": {"zero_stage": 1}}
    config = tiny_config(tmp_path / "slurm", **settings)
    job = _job(tmp_path / "bin", "--config", str(config), MASTER_PORT=free_port())
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 0, output
    train_on_ranks(2, [tiny_config(tmp_path / "ranks", **settings)])
    assert read_steps(tmp_path / "slurm") == read_steps(tmp_path / "ranks")
