"""Whole runs of two ranks of which one dies: the other ends too, and says why."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from training_runs import REPOSITORY, tiny_config

# The victim ends itself in the given place; what it does there is the test's choice.
_TRAIN = """
import os
import signal
import sys
import time
from framer.training import trainer as trainers
from framer.training.command import main

config, victim, place, what = sys.argv[1:]

def harm(original):
    def harmed(self, *args):
        if os.environ["RANK"] == victim and self.step >= 2:
            sys.stderr.write(f"harmed {time.time()}\\n")
            sys.stderr.flush()
            if what == "raise":
                raise ZeroDivisionError("division by zero")
            os.kill(os.getpid(), getattr(signal, what))
        return original(self, *args)
    return harmed

setattr(trainers.Trainer, place, harm(getattr(trainers.Trainer, place)))
sys.exit(main(["--config", config]))
"""


def _run(folder: Path, victim: int, place: str, what: str, **health: Any) -> list[tuple[int | None, str, float]]:
    """Exit status, standard error, and seconds from the harm to the end of each rank; None for one that never ended."""
    config = tiny_config(
        folder,
        training={"max_steps": 6, "checkpoint_steps": 2, "sample_steps": 2},
        deepspeed={"zero_stage": 2},
        health=health,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    logs = [folder / f"rank-{rank}" for rank in range(2)]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        with logs[rank].open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", _TRAIN, str(config), str(victim), place, what],
                    cwd=REPOSITORY,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                )
            )
    ended: dict[int, float] = {}
    deadline = time.monotonic() + 200
    stopped = {victim} if what == "SIGSTOP" else set()
    while len(ended.keys() | stopped) < 2 and time.monotonic() < deadline:
        for rank, process in enumerate(processes):
            if process.poll() is not None:
                ended.setdefault(rank, time.time())
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.wait()
    texts = [log.read_text() for log in logs]
    harmed = float(texts[victim].split("harmed ")[1].split()[0])
    return [
        (processes[rank].returncode if rank in ended else None, texts[rank], ended.get(rank, 0.0) - harmed)
        for rank in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "place"), [(0, "_micro_step"), (1, "_micro_step"), (1, "_save"), (0, "_write_samples")]
)
def test_a_killed_rank_ends_the_other_within_a_minute(tmp_path: Path, victim: int, place: str) -> None:
    ranks = _run(tmp_path, victim, place, "SIGKILL")
    status, errors, seconds = ranks[1 - victim]
    assert ranks[victim][0] == -signal.SIGKILL
    assert status == 1, errors[-2000:]
    assert seconds < 60
    assert f"error: rank {victim} has died" in errors


@pytest.mark.slow
def test_a_rank_that_raises_ends_the_other_with_its_message(tmp_path: Path) -> None:
    ranks = _run(tmp_path, 1, "_micro_step", "raise")
    status, errors, seconds = ranks[0]
    assert (ranks[1][0], status) == (1, 1)
    assert seconds < 60
    assert "error: rank 1 failed: ZeroDivisionError: division by zero" in errors
    assert "Traceback" not in errors
    assert "ZeroDivisionError" in ranks[1][1]


@pytest.mark.slow
def test_a_stopped_rank_is_reported(tmp_path: Path) -> None:
    ranks = _run(tmp_path, 1, "_micro_step", "SIGSTOP", rank_timeout=5)
    status, errors, seconds = ranks[0]
    assert ranks[1][0] is None
    assert status == 1
    assert seconds < 60
    assert "error: rank 1 has given no sign of life" in errors
