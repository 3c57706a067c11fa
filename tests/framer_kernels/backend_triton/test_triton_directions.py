"""A high band that is rounding error has no gradient, and a small one that is real keeps it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from framer_kernels.objective import has_direction
from framer_kernels.precision import rounding

pytest.importorskip("triton.runtime")

HERE = Path(__file__).parent
PRECISIONS = ["ieee", "bf16x3", "tf32"]


@pytest.fixture(scope="module")
def findings() -> dict[str, dict[str, float]]:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2])}
    program = [sys.executable, str(HERE / "direction_cases.py")]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_constant_map_has_no_gradient_in_the_high_band(findings: dict[str, dict[str, float]], precision: str) -> None:
    assert findings[precision]["constant"] == 0.0


# Of a band of 1e-3 (tf32: 2e-2) of the map: what the precision leaves of the low band, divided by that.
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "limit"), [("ieee", 1e-4), ("bf16x3", 3e-3), ("tf32", 1e-2)])
def test_a_small_high_band_keeps_its_gradient(
    findings: dict[str, dict[str, float]], precision: str, limit: float
) -> None:
    assert findings[precision]["small"] <= limit


def test_the_portable_backend_is_exact_whatever_the_precision() -> None:
    for dtype, eps in ((torch.float64, 2.0**-52), (torch.float32, 2.0**-23), (torch.bfloat16, 2.0**-23)):
        assert {rounding(dtype, "portable", precision) for precision in PRECISIONS} == {8 * eps}
    assert rounding(torch.bfloat16, "triton", "ieee") == 8 * 2.0**-23
    assert rounding(torch.float32, "triton", "bf16x3") < 1e-3 / 10


def test_a_band_counts_above_the_rounding_of_the_whole_map() -> None:
    norm_squared = torch.tensor([[1.0, 1.0, 0.0], [1.1e-4, 0.9e-4, 0.0]]).square()

    assert has_direction(norm_squared, 1e-4).tolist() == [[True, True, False], [True, False, False]]
