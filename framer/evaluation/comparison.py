"""Means of several runs over the same pictures and their paired differences, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 10_000
"""Times that the pictures are drawn anew."""
CONFIDENCE: Final = 0.95
SEED: Final = 0
FEW_PICTURES: Final = 20
"""Pictures below which tables say that the intervals are too narrow."""

_DRAWS_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """Bounds that a mean lies between."""

    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """A metric's mean over the pictures of a run.

    Attributes:
        value: Mean over all pictures for which the metric is defined; infinite where one of them is, NaN where there
            are none.
        finite: Mean over those with a finite value.
        interval: Of that mean; None below two pictures.
        pictures: Number of finite values.
        infinite: Number of infinite values: pictures that are the same as their original.
        undefined: Number of pictures for which the metric is not defined.
    """

    value: float
    finite: float
    interval: Interval | None
    pictures: int
    infinite: int
    undefined: int


@dataclass(frozen=True)
class Difference:
    """One run against another, picture by picture.

    Attributes:
        mean: Mean of first minus second over the pictures where both are finite; NaN where there are none.
        interval: Of that mean; None below two pictures.
        pictures: Number of pictures in the mean.
        left_out: Pictures that are not: infinite or not defined in one run.
        wins: Pictures on which the first is better, infinite values included.
        ties: Pictures on which both are the same.
        losses: Pictures on which the second is better.
    """

    mean: float
    interval: Interval | None
    pictures: int
    left_out: int
    wins: int
    ties: int
    losses: int

    @property
    def win_rate(self) -> float:
        """Share of the pictures on which the first is better, a tie counted as half; NaN where none is defined."""
        compared = self.wins + self.ties + self.losses
        return (self.wins + self.ties / 2) / compared if compared else float("nan")


def bootstrap_interval(values: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = SEED) -> Interval | None:
    """Percentile interval of the mean: the pictures are drawn anew, with replacement, and their means taken.

    Args:
        values: ``[n]``, finite, one a picture.
        resamples: Times that n pictures are drawn.
        seed: Of the draws. Values of equally many pictures are drawn alike, so that differences are consistent.

    Returns:
        The interval that holds the middle 95 % of the means; None below two values.
    """
    count = len(values)
    if count < 2:
        return None
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    at_once = max(1, _DRAWS_AT_ONCE // count)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        means[start : start + rows] = values[generator.integers(0, count, (rows, count))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def summarise(values: NDArray[np.float64]) -> Mean:
    """The mean of a run.

    Args:
        values: ``[n]``, one a picture; infinite, and NaN where the metric is not defined.
    """
    finite, defined = values[np.isfinite(values)], values[~np.isnan(values)]
    return Mean(
        value=float(defined.mean()) if len(defined) else float("nan"),
        finite=float(finite.mean()) if len(finite) else float("nan"),
        interval=bootstrap_interval(finite),
        pictures=len(finite),
        infinite=int(np.isinf(values).sum()),
        undefined=int(np.isnan(values).sum()),
    )


def compare(first: NDArray[np.float64], second: NDArray[np.float64], *, higher_is_better: bool) -> Difference:
    """One run against another.

    Args:
        first: ``[n]``, one a picture; infinite, and NaN where the metric is not defined.
        second: The same pictures of the other run.
        higher_is_better: The metric's direction.
    """
    better, worse = (first > second, first < second) if higher_is_better else (first < second, first > second)
    both = np.isfinite(first) & np.isfinite(second)
    differences = first[both] - second[both]
    return Difference(
        mean=float(differences.mean()) if len(differences) else float("nan"),
        interval=bootstrap_interval(differences),
        pictures=len(differences),
        left_out=int((~both).sum()),
        wins=int(better.sum()),
        ties=int((first == second).sum()),
        losses=int(worse.sum()),
    )
