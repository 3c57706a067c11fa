from __future__ import annotations

import itertools

import pytest

from framer.config.training import LrSchedulerConfig
from framer.training.schedule import learning_rate


def rates(max_steps: int, peak: float = 2.0, **settings: object) -> list[float]:
    """The learning rates of a run's steps, and the one after its end."""
    config = LrSchedulerConfig(**settings)  # type: ignore[arg-type]
    return [learning_rate(step, peak=peak, max_steps=max_steps, config=config) for step in range(max_steps + 1)]


def test_constant() -> None:
    assert rates(5) == [2.0] * 6
    assert rates(5, final_fraction=0.5) == [2.0] * 6


@pytest.mark.parametrize("shape", ["constant", "cosine", "linear"])
def test_the_warm_up_rises_in_even_steps_and_never_takes_a_step_of_zero(shape: str) -> None:
    assert rates(10, type=shape, warmup_steps=4)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


@pytest.mark.parametrize("shape", ["constant", "cosine", "linear"])
def test_a_run_that_is_all_warm_up(shape: str) -> None:
    assert rates(4, type=shape, warmup_steps=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


@pytest.mark.parametrize("shape", ["constant", "cosine", "linear"])
def test_a_run_of_one_step(shape: str) -> None:
    assert rates(1, type=shape)[0] == 2.0
    assert rates(1, type=shape, warmup_steps=1)[0] == 2.0


def test_linear() -> None:
    assert rates(4, type="linear") == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])
    assert rates(6, type="linear", warmup_steps=2, final_fraction=0.5) == pytest.approx(
        [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0]
    )


def test_cosine() -> None:
    half = 0.5**0.5
    assert rates(4, type="cosine") == pytest.approx([2.0, 1 + half, 1.0, 1 - half, 0.0])
    assert rates(4, type="cosine", final_fraction=0.1) == pytest.approx(
        [0.2 + 0.9 * rate for rate in (2.0, 1 + half, 1.0, 1 - half, 0.0)]
    )


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("final_fraction", [0.0, 0.01, 1.0])
def test_after_the_warm_up_the_rate_falls_from_the_peak_to_its_final_fraction(
    shape: str, warmup: int, final_fraction: float
) -> None:
    after = rates(50, type=shape, warmup_steps=warmup, final_fraction=final_fraction)[warmup:]
    assert after[0] == pytest.approx(2.0)
    assert after[-1] == pytest.approx(2.0 * final_fraction)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))
    assert all(rate > 0 for rate in after[:-1])
