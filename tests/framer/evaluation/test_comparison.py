"""Bootstrap intervals against a plain loop and against what they promise; wins, ties and values that are not finite."""

import math

import numpy as np
import pytest

from framer.evaluation import comparison
from framer.evaluation.comparison import bootstrap_interval, compare, summarise

INF, NAN = math.inf, math.nan


def test_interval_equals_a_plain_loop():
    values = np.random.default_rng(5).gamma(2.0, size=17)
    generator = np.random.default_rng(3)
    means = [np.mean([values[i] for i in generator.integers(0, 17, 17)]) for _ in range(400)]
    assert bootstrap_interval(values, resamples=400, seed=3) == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_interval_does_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    values = np.random.default_rng(5).normal(size=30)
    at_once = bootstrap_interval(values, resamples=1000)
    monkeypatch.setattr(comparison, "_DRAWS_AT_ONCE", 97)
    assert bootstrap_interval(values, resamples=1000) == at_once


def test_interval_comes_out_the_same_again():
    values = np.random.default_rng(5).normal(size=30)
    assert bootstrap_interval(values) == bootstrap_interval(values.copy())
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_about_95_of_100_intervals_hold_the_true_mean():
    generator = np.random.default_rng(7)
    samples = generator.normal(3.0, 1.0, size=(400, 60))
    intervals = [bootstrap_interval(sample, resamples=600, seed=i) for i, sample in enumerate(samples)]
    assert 0.90 < np.mean([low < 3.0 < high for low, high in intervals]) < 0.98


@pytest.mark.parametrize("values", [[], [1.5]])
def test_no_interval_below_two_values(values):
    assert bootstrap_interval(np.array(values)) is None


def test_interval_of_equal_values_is_a_point():
    assert bootstrap_interval(np.full(9, 0.25)) == (0.25, 0.25)


def test_mean_with_a_picture_that_equals_its_original_is_infinite_and_the_others_are_kept_apart():
    mean = summarise(np.array([30.0, INF, 32.0]))
    assert (mean.value, mean.finite, mean.pictures, mean.infinite, mean.undefined) == (INF, 31.0, 2, 1, 0)
    assert mean.interval == (30.0, 32.0)


def test_mean_leaves_out_what_is_not_defined_and_counts_it():
    mean = summarise(np.array([4.0, NAN, 6.0, NAN]))
    assert (mean.value, mean.finite, mean.pictures, mean.infinite, mean.undefined) == (5.0, 5.0, 2, 0, 2)
    nothing = summarise(np.array([NAN, NAN]))
    assert math.isnan(nothing.value)
    assert (nothing.interval, nothing.pictures, nothing.undefined) == (None, 0, 2)


def test_differences_are_paired():
    generator = np.random.default_rng(0)
    hard_and_easy = generator.normal(28, 5, size=50)
    first, second = hard_and_easy + 0.3 + generator.normal(0, 0.05, 50), hard_and_easy
    found = compare(first, second, higher_is_better=True)
    assert found.mean == pytest.approx(0.3, abs=0.03)
    assert 0.25 < found.interval.low < found.interval.high < 0.35
    # Each run's own interval is far wider: unpaired, the gain would drown in the differences between pictures.
    alone = summarise(first).interval
    assert alone.high - alone.low > 2


@pytest.mark.parametrize(("higher_is_better", "wins", "losses"), [(True, 2, 1), (False, 1, 2)])
def test_wins_follow_the_direction(higher_is_better, wins, losses):
    found = compare(np.array([3.0, 4, 1, 5]), np.array([2.0, 2, 2, 5]), higher_is_better=higher_is_better)
    assert (found.wins, found.ties, found.losses) == (wins, 1, losses)
    assert found.win_rate == (wins + 0.5) / 4
    assert found.mean == 0.5


def test_infinite_values_count_as_wins_and_ties_but_not_in_the_mean():
    found = compare(np.array([INF, INF, 31.0]), np.array([30.0, INF, 30.0]), higher_is_better=True)
    assert (found.wins, found.ties, found.losses, found.left_out, found.pictures) == (2, 1, 0, 2, 1)
    assert (found.mean, found.interval) == (1.0, None)


def test_a_picture_that_one_run_is_not_defined_for_is_no_win():
    found = compare(np.array([NAN, 5.0]), np.array([4.0, NAN]), higher_is_better=False)
    assert (found.wins, found.ties, found.losses, found.left_out) == (0, 0, 0, 2)
    assert math.isnan(found.mean)
    assert math.isnan(found.win_rate)
