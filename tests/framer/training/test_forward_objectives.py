"""A micro-step and a restoration of every type of objective, by the trainer's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import tiny_config

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.data.dataset import Sample
from framer.distill import Framer
from framer.models.build import build_model
from framer.models.latents import build_latents
from framer.models.restoration_model import RestorationModel
from framer.objectives import Supervision, build_objective
from framer.planning.activations import trace_micro_step
from framer.training.evaluation import build_restorer
from framer.training.forward import ForwardPass

OBJECTIVES: list[dict[str, Any]] = [
    {"type": "flow_matching", "prediction_type": "sample"},
    {"type": "diffusion"},
    {"type": "diffusion", "prediction_type": "v_prediction", "zero_terminal_snr": True},
    {"type": "one_step"},
]

CPU = torch.device("cpu")


def read(folder: Path, objective: dict[str, Any]) -> TrainConfig:
    return load_config(TrainConfig, tiny_config(folder, objective=objective, model={"latents": "pixel"}))


def images(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batch_of(numbers: list[int]) -> Sample:
    parts = [(images(3, 32, 32, seed=n), images(3, 32, 32, seed=100 + n)) for n in numbers]
    return {
        "hr": torch.stack([hr for hr, _ in parts]),
        "lr": torch.zeros(len(parts), 3, 8, 8),
        "lr_upsampled": torch.stack([upsampled for _, upsampled in parts]),
        "index": torch.tensor(numbers),
    }  # type: ignore[typeddict-item]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_micro_step_has_the_objectives_loss_and_trains_the_model(tmp_path: Path, objective: dict[str, Any]) -> None:
    config = read(tmp_path, objective)
    model = build_model(config.model, seed=0)
    forward = ForwardPass(RestorationModel(model, config.model, CPU), config, Framer(model, config.framer))
    batch = batch_of([3, 4])
    losses = forward.losses(model, batch)
    built = build_objective(config.objective, build_latents(config.model, CPU))
    noisy = built.add_noise(batch["hr"], batch["lr_upsampled"], [3, 4], config.seed)
    expected = built.loss(model(**losses.inputs).sample, noisy, Supervision(batch["hr"], batch["lr_upsampled"]))
    torch.testing.assert_close(losses.noise, expected)
    assert torch.equal(losses.inputs["timestep"], noisy.timesteps)
    (losses.noise + losses.framer).backward()
    assert model.proj_out.weight.grad is not None
    assert model.proj_out.weight.grad.any()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_model_in_training_restores_images_of_any_size(tmp_path: Path, objective: dict[str, Any]) -> None:
    config = read(tmp_path, objective)
    restorer = build_restorer(RestorationModel(build_model(config.model, seed=0).eval(), config.model, CPU), config)
    upsampled = images(1, 3, 48, 40, seed=5)
    restored = restorer(upsampled, seed=0)
    assert restored.shape == upsampled.shape
    assert torch.isfinite(restored).all()
    assert restored.abs().max() <= 1


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_objective_can_be_planned(tmp_path: Path, objective: dict[str, Any]) -> None:
    assert trace_micro_step(read(tmp_path, objective)).moments
