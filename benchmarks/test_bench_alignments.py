"""A training step with each alignment method, and without one."""

from __future__ import annotations

from typing import get_args

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.alignments import CASE, aligned_step
from benchmarks.measure import synchronize
from framer.config.alignment import Method


@pytest.mark.parametrize("method", [None, *get_args(Method)])
def test_step(benchmark: BenchmarkFixture, method: Method | None, device: str) -> None:
    benchmark.group = f"training step, {CASE.layers} blocks, forward and backward, by alignment method"
    step = aligned_step(method, device=device)
    benchmark.extra_info["kept_bytes"] = step.saved()

    def run() -> None:
        step()
        synchronize()

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
