"""A step of the loss takes few launches, whatever the number of layers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton.runtime") is None, reason="needs Triton")

HERE = Path(__file__).parent


def test_forward_and_backward_are_at_most_eight_launches() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parents[2])}
    program = [sys.executable, str(HERE / "launch_cases.py")]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [layers for layers, *_ in found] == [3, 9, 3, 9]
    for _, representation, kernels, operations in found:
        assert len(kernels) == {"complex": 7, "magnitude": 6}[representation]
        assert operations == ["mean"]
