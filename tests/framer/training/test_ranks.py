"""Joining and leaving the processes that train together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import environment

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
