"""Draws how runs differ, picture by picture, with the means' intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from framer.evaluation.comparison import CONFIDENCE, FEW_PICTURES, bootstrap_interval
from framer.evaluation.folders import Evaluation, Measured
from framer.evaluation.results import Pair, measured_per_picture, pairs_of_runs
from framer.plotting import HF_COLOUR, LF_COLOUR, new_canvas, save_canvas, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PAIRS = 6
"""Pairs of runs above which only those with the first run are drawn."""
_LABEL = 36


def plot_comparison(path: Path, evaluation: Evaluation) -> str:
    """Plots a point a picture: of each pair of runs the difference; of a single run the value.

    Args:
        path: The PNG to create or replace; missing parent folders are made.
        evaluation: At least one metric with a value a picture.

    Returns:
        A caption that says what is plotted.

    Raises:
        ValueError: No metric has a value for each picture.
        UserError: The folder cannot be written to.
    """
    results = list(measured_per_picture(evaluation))
    if not results:
        raise ValueError("no metric has a value for each picture: nothing to plot")
    pairs = pairs_of_runs(evaluation)
    if len(pairs) > MAX_PAIRS:
        pairs = [pair for pair in pairs if pair.against == evaluation.runs[0].name]
    rows = max(len(pairs), 1)
    count = len(evaluation.names)
    title = f"{'Differences' if pairs else 'Values'} over {count} {'picture' if count == 1 else 'pictures'}"
    if 1 < count < FEW_PICTURES:
        title += ": too few for reliable intervals"
    canvas = new_canvas(10.0, 0.9 + len(results) * (1.05 + 0.45 * rows), title)
    plots = canvas.subplots(len(results), 1, squeeze=False)[:, 0]
    for axes, result in zip(plots, results, strict=True):
        _draw(axes, result, pairs, evaluation.runs[0].name)
    drawn = dict(zip(*reversed(plots[0].get_legend_handles_labels()), strict=True))
    canvas.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=3, fontsize=10, frameon=False)
    save_canvas(canvas, path)
    what = "the difference between two runs, first minus second" if pairs else "the value"
    return (
        f"Each pale point is {what} on one picture; the dark mark is the mean and the bar its {CONFIDENCE:.0%} "
        "bootstrap interval. Infinite values and those that are not defined are left out."
    )


def _draw(axes: Axes, result: Measured, pairs: list[Pair], only: str) -> None:
    better = "right is better" if result.metric.higher_is_better else "left is better"
    if pairs:
        labels = [f"{_short(pair.run)} - {_short(pair.against)}" for pair in pairs]
        with np.errstate(invalid="ignore"):
            series = [result.values[pair.run] - result.values[pair.against] for pair in pairs]
        axes.axvline(0.0, color="black", linewidth=1.0)
    else:
        labels, series = [_short(only)], [result.values[only]]
    for row, values in enumerate(series):
        _draw_row(axes, row, values[np.isfinite(values)])
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    style_axes(axes, x_label=f"{result.metric.label}, {better}", y_label="")


def _draw_row(axes: Axes, row: int, values: NDArray[np.float64]) -> None:
    if not len(values):
        axes.text(0.5, row, "no finite values", transform=axes.get_yaxis_transform(), ha="center", va="center")
        return
    # Below the mean, spread in the pictures' order, so that nothing hides anything.
    heights = row + np.linspace(0.1, 0.36, len(values))
    axes.scatter(values, heights, s=14, color=LF_COLOUR, alpha=0.4, linewidths=0, label="one picture")
    interval = bootstrap_interval(values)
    if interval is not None:
        label = f"{CONFIDENCE:.0%} interval of the mean"
        axes.plot(interval, [row - 0.12] * 2, color=HF_COLOUR, linewidth=3.0, solid_capstyle="butt", label=label)
    axes.plot([values.mean()], [row - 0.12], "D", color=HF_COLOUR, markeredgecolor="black", markersize=7, label="mean")


def _short(name: str) -> str:
    return name if len(name) <= _LABEL else f"{name[: _LABEL // 2]}...{name[-_LABEL // 2 :]}"
