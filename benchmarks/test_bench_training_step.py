"""A training step of a real transformer with FRAMER and without, alternating."""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import median_interval, timed
from benchmarks.models import StepCase, paired_steps

PAIRS = 9


def test_training_step(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "a pair of training steps at the width of SD3.5 medium, one without and one with FRAMER"
    steps = paired_steps(StepCase())
    ratios: list[float] = []

    def pair() -> None:
        order = list(steps) if len(ratios) % 2 else list(reversed(steps))
        seconds = {name: timed(steps[name]) for name in order}
        ratios.append(seconds["with FRAMER"] / seconds["without FRAMER"])

    benchmark.pedantic(pair, rounds=PAIRS, warmup_rounds=1)

    ratio = median_interval(ratios[1:])
    benchmark.extra_info["median_ratio"] = ratio.median
    print(f"\nwith FRAMER over without: median {ratio.median:.4f}, 95 % interval {ratio.low:.4f} to {ratio.high:.4f}")
