"""Names of models and images in figures: colours that tell them apart, and texts cut to the room there is."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


class Line(NamedTuple):
    """How the curve of one model is drawn: by colour, dashes and marker, so that each alone tells models apart."""

    colour: str
    dashes: str | tuple[int, tuple[int, ...]]
    marker: str
    width: float
    """Less than that of the curves drawn before, so that they are seen where they coincide."""


# Okabe and Ito's palette without its yellow, which is hardly seen on white.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", "-.", ":", (0, (7, 2, 1, 2, 1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def line_of(number: int) -> Line:
    """How the model of that number is drawn; 280 models have each their own."""
    return Line(
        _COLOURS[number % len(_COLOURS)],
        _DASHES[number % len(_DASHES)],
        _MARKERS[number % len(_MARKERS)],
        max(1.4, 3.8 - 0.6 * number),
    )


def wrapped(text: str, width: int, *, lines: int = 3) -> str:
    """A text on a few lines; what does not fit is cut, with dots in its place.

    Args:
        text: Any text.
        width: Characters of a line.
        lines: Most lines.
    """
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder="…", break_on_hyphens=False)) or text


def shortened(text: str, width: int) -> str:
    """A text on one line, its middle replaced by dots where it is longer than ``width``."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def legend_below(canvas: Canvas, axes: Axes, *, columns: int) -> None:
    """Puts one legend for all plots below them.

    Args:
        canvas: The figure, in constrained layout.
        axes: A plot that has every curve.
        columns: Entries side by side.
    """
    handles, names = axes.get_legend_handles_labels()
    canvas.legend(
        handles,
        [wrapped(name, 60) for name in names],
        loc="outside lower center",
        ncols=max(1, min(columns, len(names))),
        fontsize=10,
        frameon=False,
        handlelength=3.6,
    )
