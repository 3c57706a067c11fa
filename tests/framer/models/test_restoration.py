from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.errors import ConfigError, UserError
from framer.models.restoration import RESTORATION_FILE, check_restoration, restoration_settings


def _config(**sections: dict[str, Any]) -> TrainConfig:
    return build_config(TrainConfig, {"output_dir": "runs/x", **sections}, source="test")


def _export(folder: Path, config: TrainConfig) -> Path:
    (folder / RESTORATION_FILE).write_text(json.dumps(restoration_settings(config)))
    return folder


@pytest.mark.parametrize(
    ("trained", "now"),
    [
        ({}, {}),
        ({"model": {"latents_scale": 5}}, {"model": {"latents_scale": 5.0}}),
        # The pixels' scale has no meaning.
        ({"model": {"latents": "pixel", "latents_scale": 2.0}}, {"model": {"latents": "pixel"}}),
        # The shift and the tile may change.
        ({"objective": {"timestep_shift": 1.0}}, {"objective": {"timestep_shift": 3.0}}),
        ({"data": {"crop_size": 32}}, {"data": {"crop_size": 64}}),
    ],
)
def test_settings_that_fit(tmp_path: Path, trained: dict[str, Any], now: dict[str, Any]) -> None:
    check_restoration(_export(tmp_path, _config(**trained)), _config(**now))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"model": {"latents": "pixel"}}, r"model\.latents=pixel \(trained with residual\)"),
        ({"model": {"latents_scale": 2.0}}, r"model\.latents_scale=2\.0 \(trained with 6\.0\)"),
        (
            {"objective": {"prediction_type": "sample"}},
            r"objective\.prediction_type=sample \(trained with velocity\)",
        ),
        ({"data": {"scale": 2}}, r"data\.scale=2 \(trained with 4\)"),
        ({"model": {"text_tokens": 77}}, r"model\.text_tokens=77 \(trained with 1\)"),
    ],
)
def test_settings_under_which_the_model_means_something_else(tmp_path: Path, now: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_restoration(_export(tmp_path, _config()), _config(**now))


def test_an_export_from_before_text_tokens_were_a_setting_has_one(tmp_path: Path) -> None:
    settings = restoration_settings(_config())
    del settings["text_tokens"]
    (tmp_path / RESTORATION_FILE).write_text(json.dumps(settings))
    check_restoration(tmp_path, _config())
    with pytest.raises(ConfigError, match=r"model\.text_tokens=2 \(trained with 1\)"):
        check_restoration(tmp_path, _config(model={"text_tokens": 2}))


def test_an_export_from_before_there_were_types_of_objective_is_flow_matching(tmp_path: Path) -> None:
    settings = restoration_settings(_config())
    del settings["objective"]
    (tmp_path / RESTORATION_FILE).write_text(json.dumps(settings))
    check_restoration(tmp_path, _config())
    with pytest.raises(ConfigError, match=r"objective\.type=diffusion \(trained with flow_matching\); set"):
        check_restoration(tmp_path, _config(objective={"type": "diffusion"}))


V_PREDICTION = {"type": "diffusion", "prediction_type": "v_prediction"}


@pytest.mark.parametrize(
    ("trained", "now", "message"),
    [
        (V_PREDICTION, V_PREDICTION | {"min_snr_gamma": 5.0}, None),
        (V_PREDICTION, {"type": "diffusion"}, r"objective\.prediction_type=epsilon \(trained with v_prediction\)"),
        (
            V_PREDICTION,
            V_PREDICTION | {"zero_terminal_snr": True},
            r"objective\.zero_terminal_snr=True \(trained with False\)",
        ),
        (V_PREDICTION, {}, r": objective\.type=flow_matching \(trained with diffusion\); set"),
        ({"type": "one_step"}, {"type": "one_step", "csd_weight": 1.0, "csd_base": "x"}, None),
        ({"type": "one_step"}, {"type": "one_step", "timestep": 9}, r"objective\.timestep=9 \(trained with 1\)"),
    ],
)
def test_other_objectives(tmp_path: Path, trained: dict[str, Any], now: dict[str, Any], message: str | None) -> None:
    model = {"latents": "pixel"}
    folder = _export(tmp_path, _config(objective=trained, model=model))
    if message is None:
        check_restoration(folder, _config(objective=now, model=model))
        return
    with pytest.raises(ConfigError, match=message):
        check_restoration(folder, _config(objective=now, model=model))


def test_the_export_says_how_to_sample() -> None:
    names = {"objective", "prediction_type", "timestep_shift", "zero_terminal_snr", "timestep"}

    def settings(**objective: Any) -> dict[str, Any]:
        written = restoration_settings(_config(objective=objective, model={"latents": "pixel"}))
        return {name: value for name, value in written.items() if name in names}

    assert settings() == {"objective": "flow_matching", "prediction_type": "velocity", "timestep_shift": 3.0}
    assert settings(**V_PREDICTION) == {
        "objective": "diffusion",
        "prediction_type": "v_prediction",
        "zero_terminal_snr": False,
    }
    assert settings(type="one_step", timestep=5) == {"objective": "one_step", "timestep": 5}


def test_a_folder_of_diffusers_alone_says_nothing(tmp_path: Path) -> None:
    check_restoration(tmp_path, _config())


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"latents": "pixel"}'])
def test_damaged_file(tmp_path: Path, content: str) -> None:
    (tmp_path / RESTORATION_FILE).write_text(content)
    with pytest.raises(UserError, match=r"restoration\.json is damaged"):
        check_restoration(tmp_path, _config())
