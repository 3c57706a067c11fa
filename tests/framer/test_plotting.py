"""Figures whose texts are names that users chose."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from framer.analysis.paper.labels import legend_below
from framer.plotting import legend_beside, new_canvas, save_canvas, style_axes


def draw(path: Path, name: str) -> bytes:
    """A figure with a name wherever one may stand."""
    canvas = new_canvas(6.0, 5.0, name)
    axes = canvas.subplots()
    axes.plot([0.0, 1.0], [0.0, 1.0], label=name)
    axes.set_xticks([0.0, 0.5], [name, name])
    axes.set_yticks([0.0], [name])
    axes.text(0.5, 0.5, name)
    style_axes(axes, x_label=name, y_label=name, title=name)
    legend_beside(axes)
    legend_below(canvas, axes, columns=1)
    canvas.colorbar(axes.imshow([[0.0, 1.0]]), ax=axes).set_label(name)
    save_canvas(canvas, path)
    with Image.open(path) as picture:
        return picture.convert("RGB").tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [r"$\bad$", "日本"])
def test_any_name_is_drawn(tmp_path: Path, name: str) -> None:
    assert draw(tmp_path / "figure.png", name)


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    # A formula would be drawn without its spaces.
    assert draw(tmp_path / "a.png", "$a b$") != draw(tmp_path / "b.png", "$ab$")
