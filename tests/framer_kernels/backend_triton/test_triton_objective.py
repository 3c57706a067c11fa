"""The objective's kernel and the whole loss, run in Triton's interpreter, against torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")


BUDGET = {"ieee": 2e-6, "bf16x3": 3e-5, "tf32": 4e-3}
"""Of a loss at temperature 0.1 and more, relative to the largest value."""


def run(script: str) -> dict[str, Any]:
    path = Path(__file__).with_name(script)
    environment = {**os.environ, "PYTHONPATH": str(path.parents[3])}
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_the_whole_loss_and_its_operations() -> None:
    results = run("loss_cases.py")

    assert len(results) == 15
    assert {name: error for name, error in results.items() if not error <= BUDGET[name.split()[0]]} == {}


def test_the_kernel_equals_the_objective_in_torch() -> None:
    results = run("objective_cases.py")

    assert len(results) == 17
    beyond = {(case, name): e for case, errors in results.items() for name, e in errors.items() if not e <= 5e-6}
    assert not beyond
