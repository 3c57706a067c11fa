"""The Triton kernels compile for every supported GPU within its limits; no GPU is needed."""

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
# Bytes of shared memory that one program can have.
SHARED = {"80": 163, "86": 99, "89": 99, "90": 227, "100": 227, "120": 99, "gfx942": 64}
USUAL: list[list[Any]] = [[[16, 64, 32, 32], "bfloat16", "tokens", "bf16x3"]]
CASES: list[list[Any]] = [
    *USUAL,
    [[16, 64, 32, 32], "float32", "images", "tf32"],
    [[4, 64, 32, 32], "float32", "tokens", "ieee"],
    [[4, 64, 16, 16], "bfloat16", "images", "bf16x3"],
    [[4, 64, 8, 8], "float16", "tokens", "bf16x3"],
    [[2, 64, 28, 48], "float32", "images", "bf16x3"],
    [[2, 64, 64, 64], "bfloat16", "tokens", "bf16x3"],
]
SPECTRAL: list[list[Any]] = [
    [*USUAL[0], "quantile", "magnitude"],
    [*USUAL[0], "quantile", "complex"],
    [*USUAL[0], "radial", "magnitude"],
    [[4, 64, 32, 32], "float32", "tokens", "ieee", "quantile", "complex"],
    [[4, 64, 8, 8], "float16", "tokens", "bf16x3", "quantile", "magnitude"],
    [[2, 64, 28, 48], "float32", "images", "bf16x3", "quantile", "magnitude"],
    [[2, 64, 64, 64], "bfloat16", "tokens", "bf16x3", "quantile", "complex"],
]
# Bytes of stack. Large maps, and fp32 products, which hold both factors in registers: two maps' coefficients and
# matrices of 64 columns are a few registers too many. The others: ptxas keeps to a round number of registers by
# moving a few numbers to the stack, with registers to spare.
SPILLS = {
    "64x64": 128,
    "28x48": 32,
    "ieee-quantile": 64,
    "spectral_gradients_bwd": 16,
    "vectors_fwd": 8,
    "targets_bwd": 8,
}
PACKED_KERNELS = {
    "framer_loss_teacher_fwd_kernel",
    "framer_loss_statistics_fwd_kernel",
    "framer_loss_products_fwd_kernel",
    "framer_loss_sums_fwd_kernel",
    "framer_loss_gradients_bwd_kernel",
    "framer_loss_targets_bwd_kernel",
}
SPECTRAL_KERNELS = {
    "framer_loss_magnitudes_fwd_kernel",
    "framer_loss_vectors_fwd_kernel",
    "framer_loss_spectral_statistics_fwd_kernel",
    "framer_loss_spectral_products_fwd_kernel",
    "framer_loss_sums_fwd_kernel",
    "framer_loss_spectral_gradients_bwd_kernel",
}


def compiled(target: str, cases: list[list[Any]]) -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2])}
    environment.pop("TRITON_INTERPRET", None)
    program = [sys.executable, str(HERE / "compile_cases.py"), target, json.dumps(cases)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(target: str, cases: list[list[Any]], expected: set[str]) -> None:
    kernels = compiled(target, cases)
    assert {kernel["kernel"] for kernel in kernels} == expected
    wrong = []
    for kernel in kernels:
        spills = next((limit for what, limit in SPILLS.items() if what in kernel["case"] + kernel["kernel"]), 0)
        # Magnitudes are made with few channels, in fp32.
        narrow = (
            any(part in kernel["kernel"] for part in ("sums", "magnitudes"))
            or "64x64" in kernel["case"]
            or "ieee" in kernel["case"]
        )
        wide = 0 if narrow else 128
        if kernel["spills"] > spills or kernel["shared"] > SHARED[target] * 1024 or kernel["widest_load"] < wide:
            wrong.append(kernel)
    assert wrong == []


@pytest.mark.parametrize("target", ["80", "90"])
def test_the_usual_case_compiles_within_limits(target: str) -> None:
    check(target, USUAL, PACKED_KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize("target", list(SHARED))
def test_all_cases_compile_within_limits(target: str) -> None:
    check(target, CASES, PACKED_KERNELS)


def test_the_usual_case_of_bins_compiles_within_limits() -> None:
    check("90", SPECTRAL[:1], SPECTRAL_KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize("target", list(SHARED))
def test_all_cases_of_bins_compile_within_limits(target: str) -> None:
    check(target, SPECTRAL, SPECTRAL_KERNELS)
