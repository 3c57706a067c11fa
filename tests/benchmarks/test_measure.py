"""The arithmetic of the measurements; nothing here is timed."""

from __future__ import annotations

import pytest

from benchmarks.measure import Times, interleaved, median_interval


def test_median_interval_lies_between_order_statistics() -> None:
    # Nine values: the second and the eighth hold the median with probability 1 - 20 / 512.
    assert median_interval([9, 1, 8, 2, 7, 3, 6, 4, 5]) == (5, 2, 8)
    assert median_interval([1, 2, 3, 4, 5, 6]) == (3.5, 1, 6)


def test_median_interval_wants_enough_values() -> None:
    with pytest.raises(ValueError, match="5 values are too few"):
        median_interval([1, 2, 3, 4, 5])


def test_steps_run_by_turns() -> None:
    ran: list[str] = []

    times = interleaved({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, rounds=3, warmup=1, limit=0.0)

    assert len(times.seconds["a"]) == len(times.seconds["b"]) == 3
    assert ran[:6] == ["a", "b", "a", "b", "b", "a"]


def test_ratios_are_taken_round_by_round() -> None:
    times = Times({"a": [1.0, 4.0], "b": [2.0, 2.0]}, [0.0, 0.0])

    assert times.ratios("a", "b") == [0.5, 2.0]
    assert times.median("a") == 2.5
