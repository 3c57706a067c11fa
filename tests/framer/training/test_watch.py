from __future__ import annotations

from framer.analysis.history import LayerMetrics
from framer.training.watch import PATIENCE, CollapseWatch


def layers(lf: float, hf: float) -> LayerMetrics:
    same = [1.0, 1.0]
    return LayerMetrics(
        names=["a", "b"], weight_lf=same, weight_hf=same, align_lf=[1.0, lf], align_hf=[hf, 1.0], intra=same, inter=same
    )


def test_layers_that_stay_alike_warn_once() -> None:
    watch = CollapseWatch()
    said = [watch.observe(layers(0.9995, 0.9999)) for _ in range(3 * PATIENCE)]
    assert [step for step, warning in enumerate(said, start=1) if warning] == [PATIENCE]
    assert "every layer's features" in (said[PATIENCE - 1] or "")


def test_one_layer_that_differs_in_one_band_is_enough_not_to_warn() -> None:
    watch = CollapseWatch()
    for different in (layers(0.99, 1.0), layers(1.0, 0.99)):
        said = [watch.observe(layers(1.0, 1.0)) for _ in range(PATIENCE - 1)]
        assert [*said, watch.observe(different)] == [None] * PATIENCE
    said = [watch.observe(layers(1.0, 1.0)) for _ in range(PATIENCE)]
    assert said[-1] is not None
