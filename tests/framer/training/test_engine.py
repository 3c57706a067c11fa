"""What DeepSpeed is told, and what is refused before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import pytest
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder import AsyncIOBuilder

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.training.engine import check_engine, engine_config


def _config(**sections: Any) -> TrainConfig:
    return build_config(TrainConfig, {"output_dir": "x", **sections}, source="test")


@pytest.mark.parametrize("version", ["0.19.2", "0.18.9", "0.19.2+local"])
def test_an_old_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(deepspeed, "__version__", version)
    with pytest.raises(
        UserError, match=rf"DeepSpeed {version.replace('+', '.')} is installed; 0.19.3 or later is needed"
    ):
        check_engine(_config())


@pytest.mark.parametrize("version", ["0.19.3", "0.20.0", "1.0", "0.19.8+cu130"])
def test_a_newer_deepspeed_is_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(deepspeed, "__version__", version)
    check_engine(_config())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_the_device_lacks(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(type(get_accelerator()), f"is_{precision}_supported", lambda self: None)
    with pytest.raises(UserError, match=f"training.precision={precision}: this cpu does not support it; use fp32"):
        check_engine(_config(training={"precision": precision}, deepspeed={"zero_stage": 2}))


def test_an_nvme_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"deepspeed.nvme_path: {tmp_path / 'nvme'} is not a folder"):
        check_engine(_config(deepspeed={"zero_stage": 3, "offload_param": "nvme", "nvme_path": str(tmp_path / "nvme")}))


def test_nvme_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose=False: False)
    with pytest.raises(UserError, match="libaio-dev"):
        check_engine(_config(deepspeed={"zero_stage": 3, "offload_optimizer": "nvme", "nvme_path": str(tmp_path)}))


def test_nothing_that_matters_is_left_to_a_default() -> None:
    values = engine_config(
        _config(
            training={"precision": "fp16", "gradient_clipping": 0.0, "loss_scaling": {"initial_scale_power": 9}},
            deepspeed={"zero_stage": 3, "offload_param": "nvme", "offload_optimizer": "cpu", "nvme_path": "/fast"},
        )
    )
    assert values["gradient_clipping"] == 0.0
    assert values["fp16"] == {
        "enabled": True,
        "loss_scale": 0,
        "initial_scale_power": 9,
        "loss_scale_window": 1000,
        "hysteresis": 2,
        "min_loss_scale": 1.0,
    }
    assert values["bf16"] == {"enabled": False}
    assert values["data_types"] == {"grad_accum_dtype": "fp32"}
    zero = values["zero_optimization"]
    assert zero["offload_param"] == {"device": "nvme", "pin_memory": False, "nvme_path": "/fast"}
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert zero["stage3_param_persistence_threshold"] == 100_000
