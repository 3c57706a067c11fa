"""FAW times FAM over the layers: early and late in training, and on images (the paper's Fig. 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from framer.analysis.history import StepMetrics
from framer.analysis.paper.depth import BANDS, not_there
from framer.analysis.paper.labels import wrapped
from framer.analysis.paper.measure import Measures
from framer.analysis.weights import early_and_late_modulation
from framer.plotting import HF_COLOUR, LF_COLOUR, new_canvas, save_canvas, style_axes


@dataclass(frozen=True)
class Curve:
    """Weights of one band over the layers.

    Attributes:
        band: ``lf`` or ``hf``.
        when: When in training, or at which timestep.
        layers: Numbers of the layers, counted from 0.
        weights: As many, in [0, 1].
    """

    band: str
    when: str
    layers: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Modulations:
    """What is known of one model.

    Attributes:
        trained: Early and late in training; a text that says why not.
        measured: On the images, a curve for each timestep and band; a text that says why not.
    """

    trained: list[Curve] | str
    measured: list[Curve] | str


def trained_curves(metrics: Sequence[StepMetrics], *, fam: bool) -> list[Curve] | str:
    """The first and the last tenth of a run's steps, or why there are none.

    Args:
        metrics: What the run logged.
        fam: Whether FAM was on: where it is off, its factor is logged and not used.
    """
    if not fam:
        return "FAM was off:\nthe loss used no such weights"
    try:
        phases = early_and_late_modulation(metrics)
    except ValueError:
        return "no FRAMER weights logged\n(trained without FRAMER)"
    return [
        Curve(band, f"{name}, {phase.span}", list(range(len(weights))), list(weights))
        for name, phase in zip(("early", "late"), phases, strict=True)
        for band, weights in (("lf", phase.lf), ("hf", phase.hf))
    ]


def measured_curves(measures: Mapping[int, Measures]) -> list[Curve] | str:
    """The means over the tiles, or why there are none."""
    curves = [
        Curve(
            band,
            f"t = {timestep}",
            [layer.number for layer in at.layers],
            [fmean(layer.weight_lf if band == "lf" else layer.weight_hf) for layer in at.layers],
        )
        for timestep, at in sorted(measures.items())
        for band in BANDS
        if len(at.layers) > 1
    ]
    return curves or "layers of different shapes:\nnothing to compare\nwithout heads"


def plot_modulations(path: Path, modulations: Mapping[str, Modulations], *, title: str) -> None:
    """Plots the weights: a row for each model; in training on the left, on the images on the right.

    Args:
        path: The PNG to create or replace.
        modulations: By the model's label.
        title: The figure's title.
    """
    canvas = new_canvas(10.0, 1.6 + 2.8 * len(modulations), title)
    plots = canvas.subplots(len(modulations), 2, sharey=True, squeeze=False)
    for row, (label, found) in enumerate(modulations.items()):
        for column, curves in enumerate((found.trained, found.measured)):
            axes = plots[row, column]
            style_axes(
                axes, x_label="", y_label="", title=("in training", "on these images")[column] if row == 0 else ""
            )
            if isinstance(curves, str):
                not_there(axes, curves)
                axes.set_xticks([])
                continue
            _draw(axes, curves)
            axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22))
            axes.set_xlabel("layer (0 is the first block)", fontsize=9, labelpad=1)
        plots[row, 0].set_ylabel(wrapped(label, 26), fontsize=10)
    plots[0, 0].set_ylim(-0.04, 1.06)
    save_canvas(canvas, path)


def modulation_numbers(modulations: Mapping[str, Modulations]) -> dict[str, Any]:
    """What the figure shows, as JSON; a text where there is nothing."""
    return {
        label: {"in_training": _numbers(found.trained), "on_images": _numbers(found.measured)}
        for label, found in modulations.items()
    }


def modulation_rows(modulations: Mapping[str, Modulations]) -> tuple[Sequence[str], list[list[str]]]:
    """The numbers as a table: header and rows."""
    header = ("model", "measured", "layer", "LF", "HF")
    rows: list[list[str]] = []
    for label, found in modulations.items():
        for curves in (found.trained, found.measured):
            if isinstance(curves, str):
                continue
            for low in (curve for curve in curves if curve.band == "lf"):
                high = next(curve for curve in curves if curve.band == "hf" and curve.when == low.when)
                rows += [
                    [label, low.when, str(layer), f"{of_low:.4f}", f"{of_high:.4f}"]
                    for layer, of_low, of_high in zip(low.layers, low.weights, high.weights, strict=True)
                ]
    return header, rows


def _numbers(curves: list[Curve] | str) -> Any:
    if isinstance(curves, str):
        return " ".join(curves.split())
    return [{"band": c.band, "when": c.when, "layers": c.layers, "weights": c.weights} for c in curves]


def _draw(axes: Any, curves: Sequence[Curve]) -> None:
    phases = list(dict.fromkeys(curve.when for curve in curves))
    for curve in curves:
        first = curve.when == phases[0]
        colour, marker = (LF_COLOUR, "o") if curve.band == "lf" else (HF_COLOUR, "s")
        axes.plot(
            curve.layers,
            curve.weights,
            color=colour,
            linestyle="--" if first and len(phases) > 1 else ("-", ":", "-.")[max(0, phases.index(curve.when) - 1) % 3],
            linewidth=2.0,
            marker=marker,
            markersize=5,
            markerfacecolor="white" if first and len(phases) > 1 else colour,
            label=f"{curve.band.upper()}, {curve.when}",
        )
    axes.locator_params(axis="x", integer=True, nbins=12)
