"""Similarity between the features of different images, per band (the paper's Fig. 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from framer.analysis.paper.depth import BANDS, Measured, band_means, not_there, similarity, timesteps_in
from framer.analysis.paper.labels import legend_below, shortened, wrapped
from framer.analysis.paper.measure import Measures
from framer.plotting import HF_COLOUR, LF_COLOUR, new_canvas, save_canvas, style_axes

SHOWN_IMAGES: Final = 12
"""Most images whose names fit beside a heat map."""

Matrix = Callable[[Measures, str], NDArray[np.float64]]


def teacher_matrix(measures: Measures, band: str) -> NDArray[np.float64]:
    """Similarities of the last layer between images, ``[images, images]``; NaN on the diagonal."""
    return (measures.teacher_lf if band == "lf" else measures.teacher_hf).matrix


def student_matrix(measures: Measures, band: str) -> NDArray[np.float64]:
    """Similarities of the middle layer (rows) to the last one (columns); on the diagonal of the same tiles."""
    return band_means(measures.layers[len(measures.layers) // 2], band).matrix


def plot_matrices(path: Path, measured: Measured, names: Sequence[str], matrix: Matrix, *, title: str) -> None:
    """Plots heat maps: a row for each model, columns for timesteps and bands.

    Args:
        path: The PNG to create or replace.
        measured: Models with something to show.
        names: The images' names; the first :data:`SHOWN_IMAGES` are shown.
        matrix: :func:`teacher_matrix` or :func:`student_matrix`.
        title: The figure's title.
    """
    columns = [(timestep, band) for timestep in timesteps_in(measured) for band in BANDS]
    shown = min(len(names), SHOWN_IMAGES)
    ticks = [shortened(name, 14) for name in names[:shown]]
    canvas = new_canvas(2.9 + 2.9 * len(columns), 1.6 + 2.6 * len(measured), title)
    plots = canvas.subplots(len(measured), len(columns), squeeze=False)
    image = None
    for row, (label, measures) in enumerate(measured.items()):
        for column, (timestep, band) in enumerate(columns):
            axes = plots[row, column]
            axes.set_title(f"{band.upper()}, t = {timestep}" if row == 0 else "", fontsize=11)
            axes.set_xticks(range(shown), ticks if row == len(measured) - 1 else [""] * shown, rotation=60, ha="right")
            axes.set_yticks(range(shown), ticks if column == 0 else [""] * shown)
            axes.tick_params(labelsize=8)
            if timestep not in measures:
                not_there(axes, "not measured\nat this timestep")
                continue
            values = matrix(measures[timestep], band)[:shown, :shown]
            # Lightness alone carries the value; cells without pairs stay white.
            image = axes.imshow(values, cmap="cividis", vmin=0.0, vmax=1.0)
            if shown <= 6:
                _write_values(axes, values)
        plots[row, 0].set_ylabel(wrapped(label, 22), fontsize=10)
    assert image is not None
    bar = canvas.colorbar(image, ax=plots, shrink=0.6, extend="min")
    bar.set_label("cosine similarity (0 and below: darkest)", fontsize=10)
    save_canvas(canvas, path)


def plot_own_and_other(path: Path, measured: Measured, *, title: str) -> None:
    """Plots every layer's similarity to the last layer of its own and of the other images.

    Args:
        path: The PNG to create or replace.
        measured: Models with layers that can be compared, on two images or more.
        title: The figure's title.
    """
    timesteps = timesteps_in(measured)
    canvas = new_canvas(1.2 + 3.6 * len(timesteps), 1.8 + 2.7 * len(measured), title)
    plots = canvas.subplots(len(measured), len(timesteps), sharex=True, sharey=True, squeeze=False)
    for row, (label, measures) in enumerate(measured.items()):
        for column, timestep in enumerate(timesteps):
            axes = plots[row, column]
            if timestep in measures:
                for band, colour, marker in (("lf", LF_COLOUR, "o"), ("hf", HF_COLOUR, "s")):
                    _draw(axes, measures[timestep], band, colour, marker)
            else:
                not_there(axes, "not measured\nat this timestep")
            style_axes(
                axes,
                x_label="relative depth" if row == len(measured) - 1 else "",
                y_label="",
                title=f"t = {timestep}" if row == 0 else "",
            )
            axes.set_xlim(0.0, 1.04)
        plots[row, 0].set_ylabel(wrapped(label, 26), fontsize=10)
    plots[0, 0].set_ylim(top=1.06)
    legend_below(canvas, next(a for a in plots.flat if a.get_legend_handles_labels()[0]), columns=2)
    save_canvas(canvas, path)


def cross_image_numbers(measured: Measured, names: Sequence[str]) -> dict[str, Any]:
    """What the figures show, as JSON; null where no pair was seen."""
    return {
        "images": list(names),
        "models": {
            label: {str(timestep): _numbers(at) for timestep, at in measures.items()}
            for label, measures in measured.items()
        },
    }


def cross_image_rows(measured: Measured) -> tuple[Sequence[str], list[list[str]]]:
    """The means as a table: header and rows."""
    header = ("model", "t", "compared", "LF own image", "LF other images", "HF own image", "HF other images")
    rows: list[list[str]] = []
    for label, measures in measured.items():
        for timestep, at in measures.items():
            own = "1 by definition"
            other = [_shown(pairs.mean(same=False)) for pairs in (at.teacher_lf, at.teacher_hf)]
            rows.append([label, str(timestep), "last layer with itself", own, other[0], own, other[1]])
            rows += [
                [
                    label,
                    str(timestep),
                    f"{layer.name} with last layer",
                    *(_shown(band_means(layer, band).mean(same=same)) for band in BANDS for same in (True, False)),
                ]
                for layer in at.layers
            ]
    return header, rows


def _numbers(at: Measures) -> dict[str, Any]:
    return {
        "last_layer": {
            band: {"matrix": _json(teacher_matrix(at, band)), "other_images": _teacher_mean(at, band)} for band in BANDS
        },
        "layers": {
            layer.name: {
                band: {
                    "matrix": _json(band_means(layer, band).matrix),
                    "own_image": similarity(layer, band),
                    "other_images": band_means(layer, band).mean(same=False),
                }
                for band in BANDS
            }
            for layer in at.layers
        },
    }


def _teacher_mean(at: Measures, band: str) -> float | None:
    return (at.teacher_lf if band == "lf" else at.teacher_hf).mean(same=False)


def _json(matrix: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def _shown(value: float | None) -> str:
    return "not seen" if value is None else f"{value:.4f}"


def _write_values(axes: Any, values: NDArray[np.float64]) -> None:
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value < 0.55 else "black"
            axes.text(
                column,
                row,
                f"{abs(value) if abs(value) < 0.005 else value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color=colour,
            )


def _draw(axes: Any, measures: Measures, band: str, colour: str, marker: str) -> None:
    depth = [(layer.number + 1) / measures.count for layer in measures.layers]
    for same, dashes, words in ((True, "-", "same image"), (False, "--", "other images")):
        means = [band_means(layer, band).mean(same=same) for layer in measures.layers]
        last = 1.0 if same else _teacher_mean(measures, band)
        values = [np.nan if value is None else value for value in (*means, last)]
        axes.plot(
            [*depth, 1.0],
            values,
            color=colour,
            linestyle=dashes,
            linewidth=2.0,
            marker=marker,
            markersize=5,
            markerfacecolor=colour if same else "white",
            label=f"{band.upper()}, {words}",
        )
