"""Similarity of every layer to the last one against depth, per band (the paper's Fig. 3 and Fig. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from framer.plotting import HF_COLOUR, LF_COLOUR, legend_beside, new_canvas, save_canvas, style_axes
from framer_kernels import BandSplit, Representation, band_similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class DepthSimilarity:
    """Cosine similarity to the last layer, one number for each layer before it, first layer first.

    Attributes:
        lf: Similarity of the low bands, each in [-1, 1].
        hf: Similarity of the high bands.
    """

    lf: list[float]
    hf: list[float]


@torch.no_grad()
def depth_similarity(
    students: Sequence[Tensor], teacher: Tensor, *, bands: BandSplit, representation: Representation
) -> DepthSimilarity:
    """Computes ``cos_b`` of every layer to the last one, averaged over the samples.

    Args:
        students: Feature maps ``[B, C, H, W]`` of all layers but the last, in order of depth.
        teacher: Feature map ``[B, C, H, W]`` of the last layer.
        bands: Which frequencies are low and high.
        representation: What the cosine compares, ``"complex"`` or ``"magnitude"``.

    Returns:
        The mean similarities of each student.

    Raises:
        TypeError: A map is not a floating-point tensor.
        ValueError: No students, or maps that do not fit together.
    """
    if not students:
        raise ValueError("depth similarity needs at least one layer before the last")
    lf, hf = [], []
    for student in students:
        similarity = band_similarity(student, teacher, teacher=teacher, bands=bands, representation=representation)
        lf.append(similarity.lf.mean().item())
        hf.append(similarity.hf.mean().item())
    return DepthSimilarity(lf, hf)


def plot_depth_similarity(
    path: Path,
    similarities: Mapping[int, DepthSimilarity],
    *,
    title: str,
    label: str = "this model",
    compare: tuple[str, Mapping[int, DepthSimilarity]] | None = None,
) -> str:
    """Plots the similarity of both bands to the last layer against relative depth, a plot for each timestep.

    With N layers in all, layer i = 0 .. N-1 stands at depth (i + 1) / N; the last one, at depth 1, has
    similarity 1 to itself.

    Args:
        path: The PNG to create or replace; missing parent folders are made.
        similarities: Timestep (0 to 1000) to what :func:`depth_similarity` found there.
        title: The figure's title.
        label: What the legend calls the model, where there is another one to compare with.
        compare: Name and similarities of the other model, at the same timesteps; drawn dashed.

    Returns:
        A caption that says what is plotted.

    Raises:
        ValueError: No timesteps, or others than those of ``compare``.
    """
    if not similarities:
        raise ValueError("no timesteps to plot")
    if compare is not None and set(compare[1]) != set(similarities):
        raise ValueError(f"{label} was measured at t = {sorted(similarities)}, {compare[0]} at {sorted(compare[1])}")
    canvas = new_canvas(1.8 + 3.9 * len(similarities), 4.4, title)
    plots = canvas.subplots(1, len(similarities), sharey=True, squeeze=False)[0]
    for axes, (timestep, similarity) in zip(plots, sorted(similarities.items()), strict=True):
        suffix = f", {label}" if compare is not None else ""
        _draw(axes, similarity, suffix, dashed=False)
        if compare is not None:
            _draw(axes, compare[1][timestep], f", {compare[0]}", dashed=True)
        style_axes(axes, x_label="relative depth (layer / number of layers)", y_label="", title=f"t = {timestep}")
        axes.set_xlim(0.0, 1.03)
    plots[0].set_ylabel("cosine similarity to the last layer", fontsize=11)
    # Shared by all plots: room for the lowest curve, and the whole range 0 to 1 in any case.
    plots[0].set_ylim(bottom=min(-0.03, plots[0].get_ylim()[0]), top=1.05)
    legend_beside(plots[-1])
    save_canvas(canvas, path)

    timesteps = " and ".join(str(timestep) for timestep in sorted(similarities))
    caption = (
        "Cosine similarity of every layer's low (LF) and high (HF) band to the last layer's, mean over the "
        f"images, at timestep {timesteps} of 1000 (0 is clean, 1000 is noise). The last layer's similarity "
        "to itself is 1 by definition."
    )
    return caption if compare is None else f"{caption} Solid: {label}; dashed: {compare[0]}."


def _draw(axes: Axes, similarity: DepthSimilarity, suffix: str, *, dashed: bool) -> None:
    layers = len(similarity.lf) + 1
    depth = [(layer + 1) / layers for layer in range(layers)]
    for values, band, colour, marker in (
        (similarity.lf, "LF", LF_COLOUR, "o"),
        (similarity.hf, "HF", HF_COLOUR, "s"),
    ):
        axes.plot(
            depth,
            [*values, 1.0],
            color=colour,
            linestyle="--" if dashed else "-",
            linewidth=2.0,
            marker=marker,
            markersize=5,
            markerfacecolor="white" if dashed else colour,
            label=f"{band}{suffix}",
        )
