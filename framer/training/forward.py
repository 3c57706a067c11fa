"""The forward half of a micro-step: from a batch to its losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from framer.config.training import TrainConfig
from framer.data.dataset import Sample
from framer.distill import Framer, FramerOutput
from framer.models.conditioning import model_inputs
from framer.models.latents import build_latents
from framer.objectives import NoisyBatch, Supervision, build_objective

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel


class Losses(NamedTuple):
    """What a batch amounts to."""

    inputs: dict[str, Tensor]
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
        model: The transformer, which tells the inputs' sizes and dtype.
        config: The run.
        framer: Captures the model's features; None without FRAMER.
        device: Where the model is.
    """

    def __init__(
        self, model: SD3Transformer2DModel, config: TrainConfig, framer: Framer | None, device: torch.device
    ) -> None:
        self._model = model
        self._config = config
        self._framer = framer
        self._device = device
        self._latents = build_latents(config.model)
        self._objective = build_objective(config.objective, self._latents)

    def prepare(self, batch: Sample) -> tuple[NoisyBatch, dict[str, Tensor]]:
        """A batch with its noise, which depends on nothing but the samples' numbers, and the model's arguments.

        Args:
            batch: Samples with a leading batch axis.
        """
        dtype = next(self._model.parameters()).dtype
        upsampled = batch["lr_upsampled"].to(self._device)
        reference = self._latents.reference(upsampled)
        noisy = self._objective.add_noise(
            self._latents.encode(batch["hr"].to(self._device), upsampled),
            reference,
            torch.as_tensor(batch["index"]).tolist(),
            self._config.seed,
        )
        condition = self._latents.condition(reference).to(dtype)
        tokens = self._config.model.text_tokens
        return noisy, model_inputs(self._model, noisy.sample.to(dtype), condition, noisy.timesteps, text_tokens=tokens)

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
            supervision = Supervision(batch["hr"].to(self._device), batch["lr_upsampled"].to(self._device))
        noise_loss = self._objective.loss(output, noisy, supervision)
        return Losses(inputs, out, noise_loss, noise_loss.new_zeros(()) if out is None else out.total)
