from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framer.analysis import StepMetrics, plot_losses, plot_modulation
from framer.analysis.history import LayerMetrics
from framer.analysis.losses import moving_mean
from framer.analysis.weights import early_and_late_modulation
from framer.plotting import HF_COLOUR, LF_COLOUR


def layers(weight: float, names: tuple[str, ...] = ("a", "b", "c")) -> LayerMetrics:
    count = len(names)
    return LayerMetrics(
        names=list(names),
        weight_lf=[weight] * count,
        weight_hf=[weight / 2] * count,
        align_lf=[0.5] * count,
        align_hf=[0.5] * count,
        intra=[1.0] * count,
        inter=[1.0] * count,
    )


def run(steps: int, *, framer: bool = True) -> list[StepMetrics]:
    return [
        StepMetrics(
            step=step,
            loss=1.0 + 1.0 / step,
            noise_loss=0.5,
            framer_loss=0.5 if framer else None,
            layers=layers(step / steps) if framer else None,
        )
        for step in range(1, steps + 1)
    ]


def shows(path: Path, colour: str) -> bool:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return bool((pixels == tuple(bytes.fromhex(colour[1:]))).all(axis=-1).any())


def test_modulation_is_the_mean_product_of_weight_and_alignment() -> None:
    early, late = early_and_late_modulation(run(20))
    # Weights are step / 20 in the low band and half of it in the high band; alignments are 0.5.
    assert (early.first_step, early.last_step, late.first_step, late.last_step) == (1, 2, 19, 20)
    assert early.lf == pytest.approx([0.5 * 1.5 / 20] * 3)
    assert early.hf == pytest.approx([0.25 * 1.5 / 20] * 3)
    assert late.lf == pytest.approx([0.5 * 19.5 / 20] * 3)
    assert late.hf == pytest.approx([0.25 * 19.5 / 20] * 3)


def test_moving_mean_uses_what_lies_inside_and_is_finite() -> None:
    values = np.array([1.0, 2.0, np.nan, 4.0, np.inf, 9.0])
    np.testing.assert_allclose(moving_mean(values, 3), [1.5, 1.5, 3.0, 4.0, 6.5, 9.0])
    np.testing.assert_allclose(moving_mean(np.array([1.0, 2.0, 4.0, 8.0]), 2), [1.0, 1.5, 3.0, 6.0])
    assert np.isnan(moving_mean(np.full(5, np.nan), 3)).all()


def test_modulation_plots_both_bands_and_says_which_steps_it_averaged(tmp_path: Path) -> None:
    path = tmp_path / "plots" / "modulation.png"
    caption = plot_modulation(path, run(50), title="FAW x FAM")
    assert shows(path, LF_COLOUR)
    assert shows(path, HF_COLOUR)
    assert "early (mean over steps 1 to 5)" in caption
    assert "late (mean over steps 46 to 50)" in caption


def test_modulation_of_a_single_step_is_plotted(tmp_path: Path) -> None:
    caption = plot_modulation(tmp_path / "modulation.png", run(1), title="FAW x FAM")
    assert "early (mean over step 1) and late (mean over step 1)" in caption


def test_modulation_counts_only_steps_with_framer(tmp_path: Path) -> None:
    mixed = [record.model_copy(update={"layers": None}) for record in run(10)] + [
        record.model_copy(update={"step": record.step + 10}) for record in run(10)
    ]
    assert "step 11" in plot_modulation(tmp_path / "modulation.png", mixed, title="FAW x FAM")


def test_modulation_without_framer_is_refused(tmp_path: Path) -> None:
    for metrics in ([], run(3, framer=False)):
        with pytest.raises(ValueError, match="FRAMER was off"):
            plot_modulation(tmp_path / "modulation.png", metrics, title="FAW x FAM")
    assert list(tmp_path.iterdir()) == []


def test_modulation_of_two_models_is_refused(tmp_path: Path) -> None:
    metrics = run(3)
    metrics[2] = metrics[2].model_copy(update={"layers": layers(0.5, ("a", "b"))})
    with pytest.raises(ValueError, match="layers change at step 3"):
        plot_modulation(tmp_path / "modulation.png", metrics, title="FAW x FAM")


def test_losses_say_whether_framer_was_on(tmp_path: Path) -> None:
    path = tmp_path / "losses.png"
    caption = plot_losses(path, run(100))
    assert "steps 1 to 100" in caption
    assert "centred mean of 5 steps" in caption
    assert "loss = noise loss + FRAMER loss" in caption
    with Image.open(path) as image:
        height_with_framer = image.height
    caption = plot_losses(path, run(100, framer=False))
    assert "FRAMER was off" in caption
    with Image.open(path) as image:
        assert image.height < height_with_framer


def test_losses_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    metrics = run(60)
    metrics[30] = metrics[30].model_copy(update={"loss": float("nan"), "framer_loss": float("inf")})
    plot_losses(tmp_path / "losses.png", metrics)
    assert shows(tmp_path / "losses.png", LF_COLOUR)


def test_losses_of_no_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no training steps"):
        plot_losses(tmp_path / "losses.png", [])
