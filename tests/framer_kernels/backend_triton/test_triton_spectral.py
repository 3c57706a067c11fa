"""The Triton kernels for magnitudes and quantile bands against float64, in Triton's interpreter: no GPU is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton.runtime") is None, reason="needs Triton")

HERE = Path(__file__).parent
# Of the arithmetic, relative to the largest value; float32 itself is at 3e-7.
BUDGET = {"bf16x3": 2e-5, "tf32": 2e-3, "ieee": 1e-6}
# Gradients of magnitudes follow the direction of every bin, which in a weak one is known less well.
WEAK_BINS = 10
# Gradients are rounded to the dtype of the features.
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def run(size: str) -> dict[str, dict[str, float]]:
    """Errors by case and field, from a process in which kernels are interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parents[2])}
    program = [sys.executable, str(HERE / "spectral_cases.py"), size]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: line["errors"] for line in lines}


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, float]]:
    return run("few")


def beyond_budget(results: dict[str, dict[str, float]]) -> tuple[int, list[str]]:
    cases = {name: errors for name, errors in results.items() if not name.startswith(("isolation", "dead"))}
    wrong = []
    for name, errors in cases.items():
        rounding = next(r for d, r in ROUNDING.items() if f"-{d}-" in name)
        budget = next(b for p, b in BUDGET.items() if f"-{p}-" in name)
        for field, error in errors.items():
            limit = budget
            if field.startswith("gradient"):
                # A sum is rounded, added to and rounded again.
                limit = budget * (WEAK_BINS if "magnitude" in name else 1) + 3 * rounding
            if not error <= limit:
                wrong.append(f"{name} {field}: {error:.2e} > {limit:.2e}")
    return len(cases), wrong


def test_products_and_gradients_are_right(results: dict[str, dict[str, float]]) -> None:
    count, wrong = beyond_budget(results)

    assert count == 12
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "large"])
def test_products_and_gradients_of_more_maps_are_right(size: str) -> None:
    count, wrong = beyond_budget(run(size))

    assert count >= 30
    assert wrong == []


def test_nan_stays_in_its_sample(results: dict[str, dict[str, float]]) -> None:
    found = [errors for name, errors in results.items() if name.startswith("isolation")]

    assert found == [{"products": 0.0, "gradients": 0.0}] * 3


def test_features_of_zero_have_no_gradient(results: dict[str, dict[str, float]]) -> None:
    found = [errors for name, errors in results.items() if name.startswith("dead")]

    assert found == [{"dead": 0.0, "alive": 1.0}]
