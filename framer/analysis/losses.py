"""Plots the losses over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from framer.analysis.history import StepMetrics
from framer.plotting import LINE_COLOURS, legend_beside, new_canvas, save_canvas, style_axes

_SMOOTHED_SHARE = 0.05


def plot_losses(path: Path, metrics: Sequence[StepMetrics], *, title: str = "Training losses") -> str:
    """Plots the total loss, the noise loss and, where FRAMER is on, the FRAMER loss, raw and smoothed.

    Args:
        path: The PNG to create or replace; missing parent folders are made.
        metrics: The run's records, from :func:`framer.analysis.history.read_metrics`.
        title: The figure's title.

    Returns:
        A caption that says what is plotted.

    Raises:
        ValueError: There are no records.
    """
    if not metrics:
        raise ValueError("no training steps to plot: the metrics are empty")
    steps = np.array([record.step for record in metrics])
    curves = {"loss": _curve(record.loss for record in metrics)}
    framer_on = any(record.framer_loss is not None for record in metrics)
    if framer_on:
        curves["noise loss"] = _curve(record.noise_loss for record in metrics)
        curves[f"{_aligned_by(metrics)} loss"] = _curve(record.framer_loss for record in metrics)
    window = round(_SMOOTHED_SHARE * len(steps))

    canvas = new_canvas(9.0, 1.2 + 2.2 * len(curves), title)
    plots = canvas.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, values), colour in zip(plots, curves.items(), LINE_COLOURS, strict=False):
        if window > 1:
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8, label="each step")
            smoothed = moving_mean(values, window)
            axes.plot(steps, smoothed, color=colour, linewidth=2.0, label=f"mean of {window} steps")
        else:
            axes.plot(steps, values, color=colour, linewidth=1.2, marker="o", label="each step")
        style_axes(axes, x_label="", y_label=name)
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        legend_beside(axes)
    plots[-1].set_xlabel("optimizer step", fontsize=11)
    save_canvas(canvas, path)

    caption = f"Losses of steps {steps[0]} to {steps[-1]}"
    if window > 1:
        caption += f": each step pale, and the centred mean of {window} steps dark"
    skipped = sum(record.skipped for record in metrics)
    if skipped:
        caption += f"; {skipped} skipped steps are left out"
    if framer_on:
        name = f"{_aligned_by(metrics)} loss"
        return f"{caption}. The {name} is shown with its weight: loss = noise loss + {name}."
    return f"{caption}. FRAMER was off: the loss is the noise loss."


def _aligned_by(metrics: Sequence[StepMetrics]) -> str:
    other = next((record.alignment.method for record in metrics if record.alignment is not None), None)
    return "FRAMER" if other is None else other


def _curve(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values])


def moving_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Smooths a curve by the mean over a centred window.

    Args:
        values: ``[n]``; values that are not finite are left out of the means.
        window: Width of the window, at most n; an even one reaches one value further back than ahead.

    Returns:
        ``[n]``: near the ends the mean of what lies inside the curve; NaN where the window has no finite
            value.
    """
    finite = np.isfinite(values)
    kernel = np.ones(window)
    sums = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    counts = np.convolve(finite.astype(np.float64), kernel, mode="same")
    means = np.full_like(sums, math.nan)
    np.divide(sums, counts, out=means, where=counts > 0.5)
    return means
