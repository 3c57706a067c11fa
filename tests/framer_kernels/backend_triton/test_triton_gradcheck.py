"""`torch.autograd.gradcheck` of the Triton kernels on tiny maps, in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton.runtime")

HERE = Path(__file__).parent


@pytest.mark.slow
def test_gradients_equal_difference_quotients() -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2])}
    program = [sys.executable, str(HERE / "gradcheck_cases.py")]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = dict(json.loads(line) for line in done.stdout.splitlines())

    assert len(found) == 8
    assert {name: complaint for name, complaint in found.items() if complaint} == {}
