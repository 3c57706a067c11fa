"""The Triton kernels against float64, in Triton's interpreter: no GPU is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton.runtime") is None, reason="needs Triton"),
    pytest.mark.slow,
]

HERE = Path(__file__).parent
# Of the arithmetic, relative to the largest value; float32 itself is at 3e-7.
BUDGET = {"bf16x3": 2e-5, "tf32": 2e-3, "ieee": 1e-6}
# Gradients are rounded to the dtype of the features.
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, float]]:
    """Errors by case and field, from a process in which kernels are interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parents[2])}
    program = [sys.executable, str(HERE / "parity_cases.py")]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: line["errors"] for line in lines}


def test_products_and_gradients_are_right(results: dict[str, dict[str, float]]) -> None:
    wrong = []
    cases = {name: errors for name, errors in results.items() if name != "isolation"}
    for name, errors in cases.items():
        dtype = next(d for d in ROUNDING if f"-{d}-" in name)
        budget = next(b for p, b in BUDGET.items() if f"-{p}-" in name)
        for field, error in errors.items():
            # A sum is rounded, added to and rounded again.
            rounding = 3 * ROUNDING[dtype] if field.startswith("gradient") else 0.0
            if not error <= budget + rounding:
                wrong.append(f"{name} {field}: {error:.2e} > {budget + rounding:.2e}")
    assert len(cases) >= 40
    assert wrong == []


def test_nan_stays_in_its_sample(results: dict[str, dict[str, float]]) -> None:
    assert results["isolation"] == {"products": 0.0, "gradients": 0.0}
