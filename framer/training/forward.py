"""The forward half of a micro-step: from a batch to its losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from framer.config.training import TrainConfig
from framer.data.dataset import Sample
from framer.distill import Framer, FramerOutput
from framer.models.restoration_model import RestorationModel
from framer.objectives import NoisyBatch, Supervision, build_objective


class Losses(NamedTuple):
    """What a batch amounts to."""

    inputs: dict[str, Any]
    """Arguments of the model's forward."""
    out: FramerOutput | None
    """None without FRAMER."""
    noise: Tensor
    """The noise loss, a scalar."""
    framer: Tensor
    """The weighted FRAMER loss, a scalar; 0 without FRAMER."""


class ForwardPass:
    """Takes batches through the model.

    Args:
        model: The model and what stands between it and images.
        config: The run.
        framer: Captures the model's features; None without FRAMER.
    """

    def __init__(self, model: RestorationModel, config: TrainConfig, framer: Framer | None) -> None:
        self._model = model
        self._config = config
        self._framer = framer
        self._objective = build_objective(config.objective, model.latents)

    def prepare(self, batch: Sample) -> tuple[NoisyBatch, dict[str, Any]]:
        """A batch with its noise, which depends on nothing but the samples' numbers, and the model's arguments.

        Args:
            batch: Samples with a leading batch axis.
        """
        model, seed = self._model, self._config.seed
        indices = torch.as_tensor(batch["index"]).tolist()
        upsampled = batch["lr_upsampled"].to(model.device)
        reference = model.latents.reference(upsampled)
        latents = model.latents.encode(batch["hr"].to(model.device), upsampled, indices=indices, seed=seed)
        noisy = self._objective.add_noise(latents, reference, indices, seed)
        return noisy, model.inputs(noisy.sample, reference, noisy.timesteps)

    def losses(self, run: Callable[..., Any], batch: Sample) -> Losses:
        """Runs the model once and computes both losses; with FRAMER a collective call.

        Args:
            run: Runs the model: the engine around it, or the model itself.
            batch: Samples with a leading batch axis.
        """
        noisy, inputs = self.prepare(batch)
        out: FramerOutput | None = None
        if self._framer is None:
            output = run(**inputs).sample
        else:
            with self._framer.capture():
                output = run(**inputs).sample
            out = self._framer.loss(sample=noisy.sample, sigmas=noisy.sigmas)
        supervision: Supervision | None = None
        if self._objective.supervised:
            supervision = Supervision(batch["hr"].to(self._model.device), batch["lr_upsampled"].to(self._model.device))
        noise_loss = self._objective.loss(output, noisy, supervision)
        return Losses(inputs, out, noise_loss, noise_loss.new_zeros(()) if out is None else out.total)
