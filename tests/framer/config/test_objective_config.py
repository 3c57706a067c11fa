from __future__ import annotations

from typing import Any

import pytest
import yaml

from framer.config.loading import build_config, save_config
from framer.config.objective import FIELDS, ObjectiveConfig
from framer.config.training import TrainConfig
from framer.errors import ConfigError


def build(objective: dict[str, Any] | None = None, **sections: Any) -> TrainConfig:
    given = {} if objective is None else {"objective": objective}
    return build_config(TrainConfig, {"output_dir": "runs/x", **given, **sections}, source="test")


def problem(objective: dict[str, Any], **sections: Any) -> str:
    """The one line of the error."""
    with pytest.raises(ConfigError) as caught:
        build(objective, **sections)
    _, line = str(caught.value).splitlines()
    return line.strip()


def test_a_section_of_before_there_were_types_is_flow_matching() -> None:
    assert build({"prediction_type": "sample", "target": "x0", "logit_mean": 4.0}).objective.type == "flow_matching"
    assert build().objective == ObjectiveConfig(type="flow_matching", prediction_type="velocity")


def test_every_setting_is_of_a_type() -> None:
    assert {name for fields in FIELDS.values() for name in fields} | {"type"} == set(ObjectiveConfig.model_fields)


def test_diffusion_predicts_the_noise_unless_told_otherwise() -> None:
    assert build({"type": "diffusion"}).objective.prediction_type == "epsilon"
    assert build({"type": "diffusion", "prediction_type": "sample"}).objective.prediction_type == "sample"


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"prediction_type": "sample", "timestep_shift": 1.0},
        {"type": "diffusion"},
        {"type": "diffusion", "prediction_type": "v_prediction", "zero_terminal_snr": True},
        {"type": "diffusion", "min_snr_gamma": 5.0},
        {"type": "one_step", "timestep": 5, "csd_weight": 1.0, "csd_base": "x", "csd_range": [0.1, 0.2]},
    ],
)
def test_a_written_configuration_has_the_settings_of_its_type_and_is_read_again(objective: dict[str, Any]) -> None:
    config = build(objective, model={"latents": "pixel"})
    content = yaml.safe_load(save_config(config))
    kind = config.objective.type
    assert list(content["objective"]) == [n for n in ObjectiveConfig.model_fields if n in ("type", *FIELDS[kind])]
    again = build_config(TrainConfig, content, source="test")
    assert again == config
    assert again.objective == config.objective


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({"logit_mean": 0.0, "type": "diffusion"}, "logit_mean is a setting of type flow_matching, but type is diffus"),
        ({"min_snr_gamma": 5.0}, "min_snr_gamma is a setting of type diffusion, but type is flow_matching; leave it"),
        ({"type": "diffusion", "timestep": 1}, "timestep is a setting of type one_step, but type is diffusion"),
        (
            {"type": "one_step", "prediction_type": "epsilon"},
            "prediction_type is a setting of type flow_matching and diffusion, but type is one_step; leave it out "
            "(one_step has timestep, space, l2_weight, lpips_weight, csd_weight, csd_guidance, csd_base, csd_range)",
        ),
        (
            {"prediction_type": "epsilon"},
            "prediction_type epsilon does not go with type flow_matching; take one of velocity, sample",
        ),
        (
            {"type": "diffusion", "prediction_type": "velocity"},
            "prediction_type velocity does not go with type diffusion; take one of epsilon, v_prediction, sample",
        ),
        ({"type": "diffusion", "zero_terminal_snr": True}, "zero_terminal_snr with prediction_type epsilon: "),
        (
            {
                "type": "diffusion",
                "prediction_type": "v_prediction",
                "zero_terminal_snr": True,
                "min_snr_gamma": 5.0,
            },
            "min_snr_gamma 5.0 with zero_terminal_snr: the last timestep",
        ),
        ({"type": "one_step", "l2_weight": 0.0}, "l2_weight, lpips_weight and csd_weight are all 0"),
        ({"type": "one_step", "csd_range": [0.5, 0.02]}, "csd_range [0.5, 0.02]: no timestep is within"),
        ({"type": "one_step", "csd_range": [0.5001, 0.5002]}, "csd_range [0.5001, 0.5002]: no timestep is within"),
    ],
)
def test_settings_that_do_not_fit(objective: dict[str, Any], expected: str) -> None:
    assert problem(objective).startswith(f"objective: {expected}")


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (
            {"type": "ddpm"},
            "objective.type: should be one of flow_matching, diffusion, one_step, got 'ddpm'",
        ),
        ({"type": "one_step", "timestep": 1000}, "objective.timestep: should be less than 1000, got 1000"),
        ({"type": "one_step", "lpips_weight": -1.0}, "objective.lpips_weight: should be greater than or equal to 0"),
        ({"type": "diffusion", "min_snr_gamma": 0.0}, "objective.min_snr_gamma: should be greater than 0"),
        ({"type": "one_step", "csd_range": [0.1, 1.5]}, "objective.csd_range.1: should be less than or equal to 1"),
    ],
)
def test_values_out_of_range(objective: dict[str, Any], expected: str) -> None:
    assert problem(objective).startswith(expected)


@pytest.mark.parametrize("kind", ["diffusion", "one_step"])
@pytest.mark.parametrize("space", ["x0", "velocity"])
def test_feature_spaces_of_flow_matching_alone(kind: str, space: str) -> None:
    model = {"latents": "pixel"}
    expected = f"framer.feature_space {space} with objective.type {kind}: "
    assert problem({"type": kind}, framer={"feature_space": space}, model=model).startswith(expected)
    assert build({"type": kind}, framer={"feature_space": space, "enabled": False}, model=model)
    assert build({"type": kind}, framer={"feature_space": "hidden"}, model=model)


def test_one_step_has_nothing_to_subtract_from_in_the_residual() -> None:
    assert "model.latents residual" in problem({"type": "one_step"})
    assert build({"type": "one_step"}, model={"latents": "pixel"})


def test_more_steps_than_the_schedule_has() -> None:
    evaluation = {"num_inference_steps": 1001}
    expected = "evaluation.num_inference_steps 1001 exceeds the 1000 timesteps of objective.type diffusion"
    assert problem({"type": "diffusion"}, evaluation=evaluation) == expected
    assert build(evaluation=evaluation)


def test_what_framers_feature_spaces_are_told() -> None:
    assert build({"prediction_type": "sample"}).objective.feature_prediction == "sample"
    assert build().objective.feature_prediction == "velocity"
