"""Densities of log(1 + |F|) in the low and the high band (the paper's Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from framer.analysis.paper.labels import legend_below, wrapped
from framer.plotting import HF_COLOUR, LF_COLOUR, new_canvas, save_canvas, style_axes
from framer_kernels import BandSplit

HIGHEST: Final = 20.0
"""Upper end of the histograms: amplitudes of e^20 are beyond any feature's."""
BINS: Final = 400


@dataclass
class Spectrum:
    """Histograms of log(1 + |F|) over bands, filled map by map.

    Args:
        bands: The division of the spectrum, radial.
    """

    bands: BandSplit
    lf: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    hf: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))

    @torch.no_grad()
    def add(self, maps: Tensor) -> None:
        """Counts the amplitudes of maps.

        Args:
            maps: ``[B, C, H, W]``, floating; one sample is transformed at a time.
        """
        low = self.bands.radial_mask(maps.shape[-2], maps.shape[-1], maps.device)
        for sample in maps:
            amplitude = torch.fft.fft2(sample.float()).abs().log1p()
            places = (amplitude * (BINS / HIGHEST)).long().clamp(max=BINS - 1)
            self.lf += torch.bincount(places[:, low].flatten(), minlength=BINS).cpu().numpy()
            self.hf += torch.bincount(places[:, ~low].flatten(), minlength=BINS).cpu().numpy()

    def density(self, band: str) -> NDArray[np.float64]:
        """The density of one band, ``[BINS]``, which integrates to 1.

        Args:
            band: ``lf`` or ``hf``.
        """
        counts = self.lf if band == "lf" else self.hf
        return np.asarray(counts / (counts.sum() * HIGHEST / BINS))

    def mean(self, band: str) -> float:
        """Mean of log(1 + |F|) in one band, by the bins' centres."""
        return float((self.density(band) * centres()).sum() * HIGHEST / BINS)


def centres() -> NDArray[np.float64]:
    """The bins' centres, ``[BINS]``."""
    return (np.arange(BINS) + 0.5) * HIGHEST / BINS


def plot_spectra(path: Path, spectra: Mapping[str, Mapping[str, Spectrum]], *, title: str) -> None:
    """Plots the densities, a row for each model and a column for each of its maps.

    Args:
        path: The PNG to create or replace.
        spectra: By the model's label, then by the map's name; all models have as many.
        title: The figure's title.
    """
    columns = max(len(maps) for maps in spectra.values())
    canvas = new_canvas(1.0 + 2.5 * columns, 1.5 + 2.3 * len(spectra), title)
    plots = canvas.subplots(len(spectra), columns, squeeze=False)
    for row, (label, maps) in enumerate(spectra.items()):
        for column, (name, spectrum) in enumerate(maps.items()):
            axes = plots[row, column]
            for band, colour, style in (("lf", LF_COLOUR, "-"), ("hf", HF_COLOUR, "--")):
                density = spectrum.density(band)
                axes.plot(centres(), density, color=colour, linestyle=style, linewidth=2.0, label=band.upper())
                axes.fill_between(centres(), density, color=colour, alpha=0.15, linewidth=0)
            style_axes(
                axes, x_label="log(1 + |F|)" if row == len(spectra) - 1 else "", y_label="", title=wrapped(name, 22)
            )
            axes.set_xlim(*_extent([spectrum]))
            axes.set_ylim(bottom=0.0)
        for column in range(len(maps), columns):
            plots[row, column].set_visible(False)
        plots[row, 0].set_ylabel(wrapped(label, 24), fontsize=10)
    legend_below(canvas, plots[0, 0], columns=2)
    save_canvas(canvas, path)


def spectra_numbers(spectra: Mapping[str, Mapping[str, Spectrum]]) -> dict[str, Any]:
    """What the figure shows, as JSON: densities over the bins where there are any."""
    shown = [spectrum for maps in spectra.values() for spectrum in maps.values()]
    left, right = _extent(shown)
    kept = (centres() >= left) & (centres() <= right)
    return {
        "bin_centres": centres()[kept].round(4).tolist(),
        "models": {
            label: {
                name: {
                    "mean_lf": spectrum.mean("lf"),
                    "mean_hf": spectrum.mean("hf"),
                    "density_lf": spectrum.density("lf")[kept].tolist(),
                    "density_hf": spectrum.density("hf")[kept].tolist(),
                }
                for name, spectrum in maps.items()
            }
            for label, maps in spectra.items()
        },
    }


def _extent(spectra: Sequence[Spectrum]) -> tuple[float, float]:
    """The range that holds all but a ten-thousandth of every band on each side."""
    ends = []
    for spectrum in spectra:
        for counts in (spectrum.lf, spectrum.hf):
            share = counts.cumsum() / counts.sum()
            ends.append((np.searchsorted(share, 1e-4), np.searchsorted(share, 1 - 1e-4)))
    first, last = min(end[0] for end in ends), max(end[1] for end in ends)
    return float(first * HIGHEST / BINS), float((last + 1) * HIGHEST / BINS)
