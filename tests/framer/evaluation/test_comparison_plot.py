"""The plot of a comparison: what it shows for many runs, one run, and values that are not finite."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framer.evaluation import comparison_plot
from framer.evaluation.comparison_plot import plot_comparison
from framer.evaluation.folders import Evaluation, Measured, Settings, Size
from framer.evaluation.protocols import choose_metrics
from framer.evaluation.runs import Run


def evaluation(values, *, metrics=("psnr", "niqe")):
    runs = [Run(name, Path(name), {}) for name in values]
    count = len(next(iter(values.values())))
    return Evaluation(
        settings=Settings(runs=tuple((run.name, run.folder) for run in runs)),
        names=[f"{i:03}" for i in range(count)],
        runs=runs,
        reference=None,
        sizes=[Size(96, 96)] * count,
        files={},
        results=[
            Measured(metric, metric.id, "", {run: np.array(row, dtype=float) for run, row in values.items()})
            for metric in choose_metrics("framer", metrics)
        ],
    )


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, with their text."""
    canvases = []
    save = comparison_plot.save_canvas
    monkeypatch.setattr(
        comparison_plot, "save_canvas", lambda canvas, path: (canvases.append(canvas), save(canvas, path))
    )
    return canvases


def rows(canvas):
    return [label.get_text() for label in canvas.axes[0].get_yticklabels()]


def points(axes, row):
    return np.sort(np.asarray(axes.collections[row].get_offsets())[:, 0])


def test_several_runs_are_drawn_as_differences(tmp_path, drawn):
    values = {"base": [30.0, 31, 29], "ours": [30.5, 31.5, 30.5]}
    caption = plot_comparison(tmp_path / "new" / "plot.png", evaluation(values))
    with Image.open(tmp_path / "new" / "plot.png") as plot:
        assert plot.width == 1500
    (canvas,) = drawn
    assert rows(canvas) == ["ours - base"]
    assert points(canvas.axes[0], 0) == pytest.approx([0.5, 0.5, 1.5])
    assert canvas.axes[0].get_xlabel() == "PSNR RGB (dB), right is better"
    assert canvas.axes[1].get_xlabel() == "NIQE, left is better"
    assert "Differences over 3 pictures: too few" in canvas.get_suptitle()
    assert "first minus second" in caption


def test_one_run_is_drawn_as_values(tmp_path, drawn):
    caption = plot_comparison(tmp_path / "plot.png", evaluation({"only": np.linspace(20, 30, 25)}, metrics=("psnr",)))
    assert rows(drawn[0]) == ["only"]
    assert points(drawn[0].axes[0], 0) == pytest.approx(np.linspace(20, 30, 25))
    assert drawn[0].get_suptitle() == "Values over 25 pictures"
    assert "the value on one picture" in caption


def test_values_that_are_not_finite_are_left_out(tmp_path, drawn):
    values = {"a": [np.inf, 30, np.nan, 31], "b": [np.inf, 31, 3, 33]}
    plot_comparison(tmp_path / "plot.png", evaluation(values, metrics=("psnr",)))
    assert points(drawn[0].axes[0], 0) == pytest.approx([1, 2])


def test_nothing_finite_is_said(tmp_path, drawn):
    plot_comparison(tmp_path / "plot.png", evaluation({"a": [np.inf], "b": [np.inf]}, metrics=("psnr",)))
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["no finite values"]


def test_many_runs_are_drawn_against_the_first_only(tmp_path, drawn):
    values = {f"run {i}": np.arange(4.0) + i for i in range(5)}
    plot_comparison(tmp_path / "plot.png", evaluation(values, metrics=("psnr",)))
    assert rows(drawn[0]) == [f"run {i} - run 0" for i in range(1, 5)]


def test_long_names_are_shortened(tmp_path, drawn):
    plot_comparison(tmp_path / "plot.png", evaluation({"x" * 100: [1.0, 2.0]}, metrics=("psnr",)))
    assert len(rows(drawn[0])[0]) < 45


def test_without_a_value_a_picture_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_comparison(tmp_path / "plot.png", evaluation({"a": [1.0]}, metrics=()))
