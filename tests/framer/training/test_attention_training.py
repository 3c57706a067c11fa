"""``model.attention_backend`` under the trainer and the planner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import TINY

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.planning.activations import trace_micro_step
from framer.training.trainer import Trainer


def _config(folder: Path, backend: str | None, **sections: Any) -> TrainConfig:
    model = {**TINY["model"], "attention_backend": backend}
    content = {**TINY, "output_dir": str(folder / "run"), "model": model, **sections}
    return build_config(TrainConfig, content, source="test")


def test_training_with_a_backend_equals_the_default(tmp_path: Path) -> None:
    losses = {}
    for backend in (None, "native", "_native_math"):
        trainer = Trainer(_config(tmp_path / str(backend), backend))
        losses[backend] = [step.loss for step in trainer.rehearse(3)]
    assert losses["native"] == losses[None]
    assert losses["_native_math"] == pytest.approx(losses[None], rel=1e-4)


@pytest.mark.parametrize(
    ("backend", "named"),
    [
        ("flash", "needs a device of type cuda.*set training.precision.*flash-attn"),
        ("flex", "SD3Transformer2DModel does not go through diffusers' dispatcher"),
        ("fastest", "'fastest' is no backend of diffusers'"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_run_begins(tmp_path: Path, backend: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Trainer(_config(tmp_path, backend))
    assert not (tmp_path / "run").exists()


def test_the_plan_keeps_all_scores_where_the_backend_does(tmp_path: Path) -> None:
    sections = {"data": {**TINY["data"], "crop_size": 64}, "framer": {"enabled": False}}
    peaks = {
        backend: max(moment.bytes for moment in trace_micro_step(_config(tmp_path, backend, **sections)).moments)
        for backend in (None, "_native_flash", "_native_math")
    }
    assert peaks["_native_flash"] == peaks[None]
    tokens, heads, blocks, batch = (64 // 4) ** 2 + 1, 2, 4, 4
    scores = batch * heads * tokens**2 * torch.float32.itemsize
    assert peaks["_native_math"] - peaks[None] > blocks * scores


def test_the_plan_refuses_what_the_model_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not go through diffusers' dispatcher"):
        trace_micro_step(_config(tmp_path, "flash"))
