"""``backend="auto"`` takes the kernels where they run, and compiles into one graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton.runtime")

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def findings() -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2])}
    program = [sys.executable, str(HERE / "auto_cases.py")]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_the_probe_runs_where_kernels_run(findings: dict[str, Any]) -> None:
    assert findings["probe"] == ""


def test_auto_takes_the_kernels_on_their_devices_alone(findings: dict[str, Any]) -> None:
    assert findings["kernels on the CPU by themselves"] == 0
    assert findings["kernels"] == 5  # one for each function
    assert findings["error"] <= 2e-6


def test_auto_with_kernels_compiles_into_one_graph(findings: dict[str, Any]) -> None:
    assert findings["graphs"] == 1
    assert findings["compiled kernels"] == 5
    assert findings["compiled error"] <= 2e-6
