"""The whole loss, forward and backward: ours against what others would write."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cases import LossCase, forward_and_backward, implementations
from benchmarks.measure import synchronize
from framer_kernels import Representation

IMPLEMENTATIONS = implementations()


@pytest.mark.parametrize("representation", ["magnitude", "complex"])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_loss(benchmark: BenchmarkFixture, name: str, representation: Representation, device: str) -> None:
    case = LossCase(representation=representation, device=device)
    benchmark.group = f"loss, {representation}, {case.layers} layers of {list(case.shape)}, forward and backward"
    step = forward_and_backward(IMPLEMENTATIONS[name], case)

    def run() -> None:
        step()
        synchronize()

    benchmark.pedantic(run, rounds=5, warmup_rounds=2)
