"""Evaluation in training: a model whose weights have become useless."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_runs import tiny_config

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.inference.load import load_restoring_model
from framer.training.evaluation import HeldOut, restore_heldout


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_model_whose_output_is_not_finite_is_told(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restoration = load_restoring_model("base").restoration

    def broken(sample: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        output = torch.zeros_like(sample)
        output[..., 3, 3] = value
        return output

    monkeypatch.setattr(restoration, "predict", broken)
    crops = torch.zeros(1, 3, 32, 32)
    heldout = HeldOut(["a.png"], crops, crops[..., ::4, ::4], crops)
    config = load_config(TrainConfig, tiny_config(tmp_path))
    with pytest.raises(
        UserError, match=r"of the evaluation photograph a\.png is not finite: its weights are of no use"
    ):
        restore_heldout(restoration, heldout, config)
