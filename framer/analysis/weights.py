"""Plots how FAW and FAM weigh the layers, early and late in training (the paper's Fig. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framer.analysis.history import StepMetrics
from framer.plotting import HF_COLOUR, LF_COLOUR, legend_beside, new_canvas, save_canvas, style_axes

_AVERAGED_SHARE = 0.1


@dataclass(frozen=True)
class Modulation:
    """FAW times FAM weights ``w_b a_b`` over some steps: the mean of each layer, first layer first.

    Attributes:
        first_step: First step of the mean.
        last_step: Last step of the mean.
        lf: ``w_LF a_LF`` of each layer, in [0, 1].
        hf: ``w_HF a_HF`` of each layer.
    """

    first_step: int
    last_step: int
    lf: list[float]
    hf: list[float]

    @property
    def span(self) -> str:
        """The steps, in words."""
        if self.first_step == self.last_step:
            return f"step {self.first_step}"
        return f"steps {self.first_step} to {self.last_step}"


def early_and_late_modulation(metrics: Sequence[StepMetrics]) -> tuple[Modulation, Modulation]:
    """Averages ``w_b a_b`` over the first and over the last tenth of the steps that recorded it.

    Each step gives the product of the batch means of ``w_b`` and ``a_b``.

    Args:
        metrics: The run's records, from :func:`framer.analysis.history.read_metrics`.

    Returns:
        The modulation early and late in training.

    Raises:
        ValueError: No record holds per-layer values, as when FRAMER is off, or the layers change within the
            run.
    """
    recorded = [(record.step, record.layers) for record in metrics if record.layers is not None]
    if not recorded:
        raise ValueError("no per-layer FRAMER values in the metrics: FRAMER was off, or nothing was recorded")
    names = recorded[0][1].names
    changed = next((step for step, layers in recorded if layers.names != names), None)
    if changed is not None:
        raise ValueError(f"the layers change at step {changed}: records of two models cannot be averaged")
    averaged = max(1, round(_AVERAGED_SHARE * len(recorded)))
    early, late = (
        Modulation(
            first_step=records[0][0],
            last_step=records[-1][0],
            lf=np.mean([np.multiply(at.weight_lf, at.align_lf) for _, at in records], axis=0).tolist(),
            hf=np.mean([np.multiply(at.weight_hf, at.align_hf) for _, at in records], axis=0).tolist(),
        )
        for records in (recorded[:averaged], recorded[-averaged:])
    )
    return early, late


def plot_modulation(path: Path, metrics: Sequence[StepMetrics], *, title: str) -> str:
    """Plots ``w_b a_b``, FAW times FAM, of every layer and both bands, early and late in training.

    Where FAM is off, ``a_b`` is still recorded but the loss does not use it: do not call this then.

    Args:
        path: The PNG to create or replace; missing parent folders are made.
        metrics: The run's records, from :func:`framer.analysis.history.read_metrics`.
        title: The figure's title.

    Returns:
        A caption that says what is plotted, with the steps that were averaged.

    Raises:
        ValueError: As :func:`early_and_late_modulation`.
    """
    early, late = early_and_late_modulation(metrics)
    canvas = new_canvas(9.0, 4.8, title)
    axes = canvas.subplots()
    for band, colour, marker in (("LF", LF_COLOUR, "o"), ("HF", HF_COLOUR, "s")):
        for name, phase in (("early", early), ("late", late)):
            weights = phase.lf if band == "LF" else phase.hf
            axes.plot(
                range(len(weights)),
                weights,
                color=colour,
                linestyle="--" if name == "early" else "-",
                linewidth=2.0,
                marker=marker,
                markersize=6,
                markerfacecolor="white" if name == "early" else colour,
                label=f"{band}, {name} ({phase.span})",
            )
    style_axes(axes, x_label="layer (0 is the first block)", y_label="FAW x FAM weight  w·a (0 to 1)")
    # Weights of 0 stand clear of the axis.
    axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
    axes.locator_params(axis="x", integer=True, nbins=24)
    legend_beside(axes)
    save_canvas(canvas, path)
    return (
        "FAW weight w times FAM weight a (the similarity to the last layer, 0 where it is negative) of each "
        f"layer in the low (LF) and high (HF) band: early (mean over {early.span}) and late (mean over "
        f"{late.span}). Each step gives the product of the batch means of w and a."
    )
