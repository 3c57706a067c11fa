"""Similarity to the last layer against depth: model by model (Fig. 3), and all models in one (Fig. 7)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from framer.analysis.paper.labels import Line, legend_below, line_of, wrapped
from framer.analysis.paper.measure import LayerMeasures, Measures, PairMeans
from framer.plotting import HF_COLOUR, LF_COLOUR, new_canvas, save_canvas, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Measured = Mapping[str, Mapping[int, Measures]]
"""What was measured, by the model's label, then by timestep."""

BANDS: Final = ("lf", "hf")
_BAND_LINES: Final = {"lf": Line(LF_COLOUR, "-", "o", 2.0), "hf": Line(HF_COLOUR, "--", "s", 2.0)}


def band_means(layer: LayerMeasures, band: str) -> PairMeans:
    """One band's similarities of a layer."""
    return layer.lf if band == "lf" else layer.hf


def similarity(layer: LayerMeasures, band: str) -> float:
    """A layer's mean similarity to the last layer on the same tile."""
    mean = band_means(layer, band).mean(same=True)
    assert mean is not None
    return mean


def timesteps_in(measured: Measured) -> list[int]:
    """All timesteps that some model was measured at, in order."""
    return sorted({timestep for measures in measured.values() for timestep in measures})


def plot_depth_by_model(path: Path, measured: Measured, *, title: str) -> None:
    """Plots both bands against depth: a row for each model, a column for each timestep (Fig. 3).

    Args:
        path: The PNG to create or replace.
        measured: Models with layers that can be compared.
        title: The figure's title.
    """
    timesteps = timesteps_in(measured)
    canvas = new_canvas(1.2 + 3.6 * len(timesteps), 1.5 + 2.7 * len(measured), title)
    plots = canvas.subplots(len(measured), len(timesteps), sharex=True, sharey=True, squeeze=False)
    for row, (label, measures) in enumerate(measured.items()):
        for column, timestep in enumerate(timesteps):
            axes = plots[row, column]
            if timestep in measures:
                for band, line in _BAND_LINES.items():
                    _draw(axes, measures[timestep], band, line, band.upper())
            else:
                not_there(axes, "not measured\nat this timestep")
            _style(axes, f"t = {timestep}" if row == 0 else "", last=row == len(measured) - 1)
        plots[row, 0].set_ylabel(wrapped(label, 26), fontsize=10)
    _whole_range(plots[0, 0], measured)
    legend_below(canvas, _first_drawn(plots.flat), columns=2)
    save_canvas(canvas, path)


def plot_depth_of_models(path: Path, measured: Measured, *, title: str) -> None:
    """Plots all models together: a row for each band, a column for each timestep (Fig. 7).

    Args:
        path: The PNG to create or replace.
        measured: Models with layers that can be compared.
        title: The figure's title.
    """
    timesteps = timesteps_in(measured)
    canvas = new_canvas(1.2 + 3.8 * len(timesteps), 6.6 + 0.3 * len(measured), title)
    plots = canvas.subplots(2, len(timesteps), sharex=True, sharey=True, squeeze=False)
    for row, band in enumerate(BANDS):
        for column, timestep in enumerate(timesteps):
            axes = plots[row, column]
            for number, (label, measures) in enumerate(measured.items()):
                line = line_of(number)
                if timestep in measures:
                    _draw(axes, measures[timestep], band, line, label)
                else:  # the legend has it nonetheless
                    axes.plot([], [], color=line.colour, linestyle=line.dashes, marker=line.marker, label=label)
            _style(axes, f"t = {timestep}" if row == 0 else "", last=row == 1)
        plots[row, 0].set_ylabel(f"{band.upper()}: cosine to last layer", fontsize=11)
    _whole_range(plots[0, 0], measured)
    legend_below(canvas, plots[0, 0], columns=2 if all(len(label) < 40 for label in measured) else 1)
    save_canvas(canvas, path)


def depth_numbers(measured: Measured) -> dict[str, Any]:
    """What the figures show, as JSON."""
    return {
        label: {
            str(timestep): {
                "layers": [layer.name for layer in at.layers],
                "depth": [(layer.number + 1) / at.count for layer in at.layers],
                "lf": [similarity(layer, "lf") for layer in at.layers],
                "hf": [similarity(layer, "hf") for layer in at.layers],
                "last_layer": at.teacher,
                "not_comparable": at.incomparable,
                "tiles": at.tiles,
            }
            for timestep, at in measures.items()
        }
        for label, measures in measured.items()
    }


def depth_rows(measured: Measured) -> tuple[Sequence[str], list[list[str]]]:
    """The numbers as a table: header and rows."""
    header = ("model", "t", "layer", "depth", "LF", "HF")
    rows = [
        [
            label,
            str(timestep),
            layer.name,
            f"{(layer.number + 1) / at.count:.3f}",
            f"{similarity(layer, 'lf'):.4f}",
            f"{similarity(layer, 'hf'):.4f}",
        ]
        for label, measures in measured.items()
        for timestep, at in measures.items()
        for layer in at.layers
    ]
    return header, rows


def not_there(axes: Axes, reason: str) -> None:
    """Says in an empty plot why it is empty.

    Args:
        axes: The ``matplotlib.axes.Axes``.
        reason: In a few words.
    """
    axes.text(0.5, 0.5, reason, ha="center", va="center", fontsize=10, color="#555555", transform=axes.transAxes)


def _draw(axes: Axes, measures: Measures, band: str, line: Line, label: str) -> None:
    depth = [(layer.number + 1) / measures.count for layer in measures.layers]
    values = [similarity(layer, band) for layer in measures.layers]
    axes.plot(
        [*depth, 1.0],
        [*values, 1.0],
        color=line.colour,
        linestyle=line.dashes,
        linewidth=line.width,
        marker=line.marker,
        markersize=3.5 + line.width,
        label=label,
    )


def _style(axes: Axes, title: str, *, last: bool) -> None:
    style_axes(axes, x_label="relative depth" if last else "", y_label="", title=title)
    axes.set_xlim(0.0, 1.04)


def _whole_range(axes: Axes, measured: Measured) -> None:
    """Sets the range that all plots share: from just below the lowest similarity to 1."""
    lowest = min(
        similarity(layer, band)
        for measures in measured.values()
        for at in measures.values()
        for layer in at.layers
        for band in BANDS
    )
    axes.set_ylim(math.floor(10 * lowest - 0.5) / 10, 1.04)


def _first_drawn(plots: Iterable[Axes]) -> Axes:
    return next(axes for axes in plots if axes.get_legend_handles_labels()[0])
