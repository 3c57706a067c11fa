"""The report's figure: time and peak memory of the loss against batch, map size and layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from framer.plotting import new_canvas, save_canvas, style_axes

COLOURS = {"portable": "#D55E00", "released formula": "#000000", "eager rfft2": "#0072B2"}
MARKERS = {"portable": "o", "released formula": "s", "eager rfft2": "^"}
AXES = {"batch": "batch B", "map size": "map size H = W", "layers": "layers N"}


def draw(sweep: dict[str, Any], path: Path) -> None:
    """Writes the figure.

    Args:
        sweep: The result of `benchmarks.parts.sweep`.
        path: The PNG.
    """
    machine = sweep["machine"]
    canvas = new_canvas(
        12.5,
        7.2,
        f"FRAMER loss, forward and backward, magnitude, float32\n{machine['device']}, {machine['threads']} threads",
    )
    grid = canvas.subplots(2, len(AXES), sharey="row", sharex="col")
    for column, (name, label) in enumerate(AXES.items()):
        points = sweep[name]
        values = [point["value"] for point in points]
        for row, (field, scale) in enumerate((("seconds", 1e3), ("peak", 2**-20))):
            axes = grid[row][column]
            for index, entry in enumerate(points[0]["rows"]):
                heights = [scale * point["rows"][index][field] for point in points]
                axes.plot(
                    values,
                    heights,
                    color=COLOURS[entry["name"]],
                    marker=MARKERS[entry["name"]],
                    label=entry["name"],
                    linewidth=2,
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_locator(FixedLocator(values))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
            base = points[0]
            held = {"batch": base["shape"][0], "map size": base["shape"][2], "layers": base["layers"]}
            others = [
                {
                    "batch": f"B = {held['batch']}",
                    "map size": f"{held['map size']} x {held['map size']}",
                    "layers": f"N = {held['layers']}",
                }[each]
                for each in AXES
                if each != name
            ]
            title = f"C = {base['shape'][1]}, {', '.join(others)}"
            style_axes(
                axes,
                x_label=label if row else "",
                y_label="" if column else ("median time (ms)", "peak allocated (MiB)")[row],
                title="" if row else title,
            )
    handles, labels = grid[0][0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=11)
    save_canvas(canvas, path)
