"""The full-size configurations of the paper's two systems, without their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap

from framer.config.loading import build_config, load_config
from framer.config.training import TrainConfig
from framer.planning.activations import MicroStep, trace_micro_step

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
UNET = f"model.pretrained={CONFIGS}/models/stable-diffusion-2-1-base/unet"


@pytest.fixture(autouse=True)
def _where_paths_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)


def _step(name: str, *overrides: str) -> MicroStep:
    return trace_micro_step(load_config(TrainConfig, CONFIGS / name, overrides))


def _millions(step: MicroStep, *, trained: bool = False) -> float:
    return sum(p.numel for p in step.parameters if p.trained or not trained) / 1e6


def test_framer_d_of_sd35_medium() -> None:
    step = _step("framer_d_sd35_medium.yaml")
    # SD3.5-medium has 2243.2 of them; why DiT4SR's 2716.8 are others: docs/control_stream.md.
    assert _millions(step) == pytest.approx(2594.05, abs=0.01)
    assert _millions(step, trained=True) == pytest.approx(2594.05 - 2243.17, abs=0.01)
    assert all(".control_" in parameter.name for parameter in step.parameters if parameter.trained)
    assert len(step.blocks) == 24


def test_framer_u_of_sd21_first_stage() -> None:
    step = _step("framer_u_sd21_stage1.yaml")
    own = [p for p in step.parameters if "lora" not in p.name and not p.name.startswith("framer_heads")]
    assert sum(p.numel for p in own) / 1e6 == pytest.approx(865.91, abs=0.01)
    assert not any(parameter.trained for parameter in own)
    assert all(p.trained for p in step.parameters if p not in own)
    assert len(step.blocks) == 10


@pytest.mark.slow
def test_framer_u_of_sd21_second_stage_holds_the_frozen_model_too() -> None:
    overrides = (UNET,)  # with LPIPS, whose library planning does not need
    with_score = _step("framer_u_sd21.yaml", *overrides)
    without = _step("framer_u_sd21.yaml", *overrides, "objective.csd_weight=0")
    assert with_score.buffer_bytes - without.buffer_bytes == pytest.approx(2 * 865.91e6, rel=1e-3)


def test_a_plan_does_not_depend_on_a_stage_3_run_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # DeepSpeed leaves its own linear function in the process, which keeps more where weights are frozen.
    settings = {"model": {"trainable": ["attention"]}, "deepspeed": {"zero_stage": 2}}
    config = build_config(TrainConfig, {"output_dir": "x", **settings}, source="test")
    before = trace_micro_step(config).moments
    monkeypatch.setattr(torch.nn.functional, "linear", zero3_linear_wrap)
    assert trace_micro_step(config).moments == before
