"""Similarity of the layers to the last one against training steps (the paper's Fig. 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from framer.analysis.history import StepMetrics
from framer.analysis.losses import moving_mean
from framer.analysis.paper.depth import BANDS, not_there, similarity
from framer.analysis.paper.labels import legend_below, line_of
from framer.analysis.paper.measure import Measures
from framer.plotting import new_canvas, save_canvas, style_axes

_SMOOTHED_SHARE = 0.02
_POINTS: Final = 200
"""Most steps of a run that the JSON and the table hold."""


@dataclass(frozen=True)
class SimilarityHistory:
    """Similarity of a run's layers to the last one, as training logged it on its own batches.

    Attributes:
        steps: ``[n]``.
        lf: ``[n, layers]``, in the low band, 0 where it is negative (FAM's factor).
        hf: That of the high band.
    """

    steps: NDArray[np.int64]
    lf: NDArray[np.float64]
    hf: NDArray[np.float64]

    def band(self, name: str) -> NDArray[np.float64]:
        """``[n, layers]`` of ``lf`` or ``hf``."""
        return self.lf if name == "lf" else self.hf


def similarity_history(metrics: Sequence[StepMetrics]) -> SimilarityHistory | None:
    """What a run logged; None where it logged no layers, as without FRAMER."""
    recorded = [(record.step, record.layers) for record in metrics if record.layers is not None]
    if not recorded:
        return None
    # Of a run that went on with other layers, the last ones.
    names = recorded[-1][1].names
    recorded = [(step, layers) for step, layers in recorded if layers.names == names]
    return SimilarityHistory(
        np.array([step for step, _ in recorded]),
        np.array([layers.align_lf for _, layers in recorded]),
        np.array([layers.align_hf for _, layers in recorded]),
    )


def plot_collapse(
    path: Path,
    logged: Mapping[str, SimilarityHistory],
    measured: Mapping[str, Mapping[int, Measures]],
    *,
    title: str,
) -> None:
    """Plots the mean over the layers, and their spread, against steps: a column for each band.

    Args:
        path: The PNG to create or replace.
        logged: Runs that logged their layers, by name; the upper row.
        measured: Runs measured at several steps, by name, then by step; the lower row.
        title: The figure's title.
    """
    runs = list(dict.fromkeys([*logged, *measured]))
    rows = [part for part in ("logged", "measured") if (logged if part == "logged" else measured)]
    canvas = new_canvas(10.0, 1.4 + 3.0 * len(rows) + 0.3 * len(runs), title)
    plots = canvas.subplots(len(rows), 2, sharey=True, squeeze=False)
    for row, part in enumerate(rows):
        for column, band in enumerate(BANDS):
            axes = plots[row, column]
            for number, run in enumerate(runs):
                line = line_of(number)
                if part == "logged" and run in logged:
                    steps, values = logged[run].steps, logged[run].band(band)
                    window = max(1, round(_SMOOTHED_SHARE * len(steps)))
                    curves = [moving_mean(curve, window) for curve in (values.mean(1), values.min(1), values.max(1))]
                    marker = line.marker if len(steps) < 30 else ""
                elif part == "measured" and run in measured:
                    at = sorted(measured[run].items())
                    steps = np.array([step for step, _ in at])
                    values = np.array([[similarity(layer, band) for layer in each.layers] for _, each in at])
                    curves, marker = [values.mean(1), values.min(1), values.max(1)], line.marker
                else:
                    axes.plot([], [], color=line.colour, linestyle=line.dashes, label=run)
                    continue
                axes.plot(
                    steps, curves[0], color=line.colour, linestyle=line.dashes, linewidth=line.width, marker=marker,
                    markersize=3.5 + line.width, label=run,
                )  # fmt: skip
                axes.fill_between(steps, curves[1], curves[2], color=line.colour, alpha=0.12, linewidth=0)
            style_axes(axes, x_label="optimizer step", y_label="", title=f"{band.upper()}, {_PARTS[part]}")
            axes.locator_params(axis="x", integer=True, nbins=6)
            if not axes.lines:
                not_there(axes, "nothing recorded")
        plots[row, 0].set_ylabel("cosine to last layer", fontsize=11)
    plots[0, 0].set_ylim(-0.04, 1.06)
    legend_below(canvas, plots[0, 0], columns=2 if all(len(run) < 40 for run in runs) else 1)
    save_canvas(canvas, path)


def collapse_numbers(
    logged: Mapping[str, SimilarityHistory], measured: Mapping[str, Mapping[int, Measures]]
) -> dict[str, Any]:
    """What the figure shows, as JSON; of a long run as many steps as a curve needs."""
    return {
        "logged": {
            run: {
                "steps": history.steps[_spread(len(history.steps))].tolist(),
                **{band: history.band(band)[_spread(len(history.steps))].tolist() for band in BANDS},
            }
            for run, history in logged.items()
        },
        "measured": {
            run: {
                str(step): {band: [similarity(layer, band) for layer in at.layers] for band in BANDS}
                for step, at in sorted(steps.items())
            }
            for run, steps in measured.items()
        },
    }


def collapse_rows(
    logged: Mapping[str, SimilarityHistory], measured: Mapping[str, Mapping[int, Measures]]
) -> tuple[Sequence[str], list[list[str]]]:
    """The numbers as a table, of a run at most a dozen steps: header and rows."""
    header = ("run", "step", "measured on", "LF mean", "LF lowest", "LF highest", "HF mean", "HF lowest", "HF highest")
    rows = []
    for run, history in logged.items():
        for place in _spread(len(history.steps), most=12):
            numbers = [_summary(history.band(band)[place]) for band in BANDS]
            rows.append([run, str(history.steps[place]), "training batch", *numbers[0], *numbers[1]])
    for run, steps in measured.items():
        for step, at in sorted(steps.items()):
            numbers = [_summary(np.array([similarity(layer, band) for layer in at.layers])) for band in BANDS]
            rows.append([run, str(step), "these images", *numbers[0], *numbers[1]])
    return header, rows


_PARTS: Final = {"logged": "in training batches", "measured": "on these images"}


def _spread(count: int, most: int = _POINTS) -> list[int]:
    """At most that many places of ``count``, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def _summary(values: NDArray[np.float64]) -> list[str]:
    return [f"{value:.4f}" for value in (values.mean(), values.min(), values.max())]
