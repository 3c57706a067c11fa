"""Joining and leaving the processes that train together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import REPOSITORY, environment, free_port, run_on_ranks, tiny_config

from framer.errors import UserError
from framer.training import ranks
from framer.training.rendezvous import Place

# Registered before the group's own exit handler, so it runs after it.
_THREADS_AT_EXIT = """
import atexit
from pathlib import Path

def report():
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    print("left:", [name for name in names if "gloo" in name])

atexit.register(report)
from framer.training.ranks import gather_objects, start_distributed
import torch.distributed as dist

start_distributed()
print("gathered:", gather_objects("value"))
cycle = [dist.group.WORLD]
cycle.append(cycle)
del cycle
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux shows them")
def test_no_thread_of_the_group_outlives_the_program() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _THREADS_AT_EXIT], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "gathered: ['value']" in result.stdout
    assert "left: []" in result.stdout


def test_fewer_gpus_than_ranks_on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"rank 9 is number 1 on .*, where it sees 1 GPU\(s\); .* not --gpus-per-task"):
        ranks._own_gpu(Place(9, 16, 1, "node-a", 29500))


_A_RANK_THAT_SLEEPS = """
import os, time
from framer.config.distributed import DistributedConfig
from framer.training.ranks import gather_objects, start_distributed

start_distributed(DistributedConfig(timeout_seconds=2))
if os.environ["RANK"] == "1":
    time.sleep(20)
gather_objects(None)
"""


@pytest.mark.slow
def test_a_collective_operation_gives_up_on_a_rank() -> None:
    (status, errors), _ = run_on_ranks(2, _A_RANK_THAT_SLEEPS, [], timeout=120)
    assert status == 1
    assert "Timed out waiting 2000ms" in errors


@pytest.mark.slow
def test_the_command_line_names_the_rank_that_did_not_come(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, distributed={"rendezvous_seconds": 1})
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    result = subprocess.run(
        [sys.executable, "train.py", "--config", str(config)],
        cwd=REPOSITORY,
        env=environment(**place),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert "error: 1 of 2 ranks came to 127.0.0.1:" in result.stderr
    assert "missing: rank 1." in result.stderr
    assert not (tmp_path / "run").exists()
