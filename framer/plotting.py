"""What all plots have in common: size, colours, and how they reach the disk."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from framer.extras import require
from framer.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Okabe and Ito's palette: told apart under every common colour blindness, and in grey by lightness.
LF_COLOUR = "#0072B2"
HF_COLOUR = "#D55E00"
LINE_COLOURS = ("#000000", "#0072B2", "#D55E00")
GRID_COLOUR = "#D9D9D9"

_DPI = 150


def new_canvas(width: float, height: float, title: str) -> Canvas:
    """Makes an empty figure that draws with Agg, apart from pyplot's global state.

    Args:
        width: Width in inches, of 150 pixels each.
        height: Height in inches.
        title: The figure's title.

    Returns:
        A ``matplotlib.figure.Figure`` that keeps labels from overlapping (constrained layout).
    """
    canvas: Canvas = require("matplotlib.figure", extra="train").Figure(figsize=(width, height), layout="constrained")
    require("matplotlib.backends.backend_agg", extra="train").FigureCanvasAgg(canvas)
    canvas.suptitle(title, fontsize=13, fontweight="bold", wrap=True)
    return canvas


def style_axes(axes: Axes, *, x_label: str, y_label: str, title: str = "") -> None:
    """Labels a plot and gives it a pale grid behind the curves.

    Args:
        axes: The ``matplotlib.axes.Axes`` to style.
        x_label: Name and unit of the horizontal axis; empty where a plot below shares it.
        y_label: Name and unit of the vertical axis.
        title: Heading of this plot.
    """
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.set_title(title, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(visible=True, color=GRID_COLOUR, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend_beside(axes: Axes) -> None:
    """Puts the legend to the right of a plot, off the curves.

    Args:
        axes: The plot, with labelled curves.
    """
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=10, frameon=False, handlelength=3.2)


def save_canvas(canvas: Canvas, path: Path) -> None:
    """Writes a figure as PNG at 150 dpi, whole or not at all.

    Texts are drawn as they are: a dollar sign starts no formula, for names of files and runs may have some. A character
    that the font lacks is a box.

    Args:
        canvas: The figure from :func:`new_canvas`.
        path: The PNG to create or replace; missing parent folders are made.

    Raises:
        UserError: The folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for text in canvas.findobj(require("matplotlib.text", extra="train").Text):
        text.set_parse_math(False)
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        canvas.savefig(png, format="png", dpi=_DPI)
    write_bytes(path, png.getvalue())
