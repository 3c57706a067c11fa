"""Each operation: portable against the reference."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cases import LossCase
from benchmarks.measure import synchronize
from framer_kernels import Backend, band_energy, band_similarity, inter_contrastive_loss

BACKENDS: list[Backend] = ["portable", "reference"]
ROUNDS = 5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.benchmark(group="band_energy")
def test_band_energy(benchmark: BenchmarkFixture, backend: Backend, device: str) -> None:
    (x, *_), _ = LossCase(layers=2, device=device).features()

    def step() -> None:
        band_energy(x, backend=backend)
        synchronize()

    benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("representation", ["complex", "magnitude"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_band_similarity(benchmark: BenchmarkFixture, backend: Backend, representation: str, device: str) -> None:
    benchmark.group = f"band_similarity, {representation}, forward and backward"
    (x, *_), teacher = LossCase(layers=2, device=device).features()

    def step() -> None:
        pair = band_similarity(x, teacher, representation=representation, backend=backend)  # type: ignore[arg-type]
        (pair.lf.sum() + pair.hf.sum()).backward()
        synchronize()

    benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("shared_negatives", [False, True], ids=["own_negative", "shared_negatives"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_inter_contrastive_loss(
    benchmark: BenchmarkFixture, backend: Backend, shared_negatives: bool, device: str
) -> None:
    benchmark.group = f"inter_contrastive_loss, shared_negatives={shared_negatives}, forward and backward"
    (x, negative, *_), teacher = LossCase(layers=2, device=device).features()

    def step() -> None:
        inter_contrastive_loss(
            x, teacher, negative.detach(), shared_negatives=shared_negatives, backend=backend
        ).sum().backward()
        synchronize()

    benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=1)
