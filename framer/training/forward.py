"""The forward half of a micro-step: from a batch to its losses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from framer.alignment.sra import teacher_sigmas
from framer.config.training import TrainConfig
from framer.data.dataset import Sample
from framer.distill import Framer, FramerOutput
from framer.models.conditioning import model_inputs
from framer.models.latents import build_latents
from framer.objectives import FlowMatching, NoisyBatch

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel


class Losses(NamedTuple):
    """What a batch amounts to."""

    inputs: dict[str, Tensor]
    """Arguments of the model's forward."""
    out: FramerOutput | None
    """None without an alignment loss."""
    noise: Tensor
    """The noise loss, a scalar."""
    framer: Tensor
    """The weighted alignment loss, FRAMER's or another, a scalar; 0 without one."""


class ForwardPass:
    """Takes batches through the model.

    Args:
        model: The transformer, which tells the inputs' sizes and dtype.
        config: The run.
        framer: Captures the model's features; None without an alignment loss.
        device: Where the model is.
        averaged: Lets the model be the average of its weights meanwhile, where that one teaches.
    """

    def __init__(
        self,
        model: SD3Transformer2DModel,
        config: TrainConfig,
        framer: Framer | None,
        device: torch.device,
        *,
        averaged: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._model = model
        self._config = config
        self._framer = framer
        self._device = device
        self._averaged = averaged
        self._latents = build_latents(config.model)
        self._objective = FlowMatching(config.objective)

    def prepare(self, batch: Sample) -> tuple[NoisyBatch, dict[str, Tensor]]:
        """A batch with its noise, which depends on nothing but the samples' numbers, and the model's arguments.

        Args:
            batch: Samples with a leading batch axis.
        """
        upsampled = batch["lr_upsampled"].to(self._device)
        noisy = self._objective.add_noise(
            self._latents.encode(batch["hr"].to(self._device), upsampled),
            torch.as_tensor(batch["index"]).tolist(),
            self._config.seed,
        )
        return noisy, self._inputs(noisy, upsampled)

    def _inputs(self, noisy: NoisyBatch, upsampled: Tensor) -> dict[str, Tensor]:
        dtype = next(self._model.parameters()).dtype
        condition = self._latents.condition(upsampled).to(dtype)
        tokens = self._config.model.text_tokens
        return model_inputs(self._model, noisy.sample.to(dtype), condition, noisy.timesteps, text_tokens=tokens)

    def losses(self, run: Callable[..., Any], batch: Sample) -> Losses:
        """Runs the model once and computes both losses; with an alignment loss a collective call.

        Where the average of the weights teaches, it runs before that, without gradients.

        Args:
            run: Runs the model: the engine around it, or the model itself.
            batch: Samples with a leading batch axis.
        """
        noisy, inputs = self.prepare(batch)
        out: FramerOutput | None = None
        if self._framer is None:
            output = run(**inputs).sample
        else:
            if self._config.framer.teacher == "ema":
                self._capture_teacher(self._framer, batch, noisy)
            with self._framer.capture():
                output = run(**inputs).sample
            images = batch["hr"].to(self._device) if self._config.framer.method == "repa" else None
            out = self._framer.loss(sample=noisy.sample, sigmas=noisy.sigmas, images=images)
        noise_loss = self._objective.loss(output, noisy)
        return Losses(inputs, out, noise_loss, noise_loss.new_zeros(()) if out is None else out.total)

    def _capture_teacher(self, framer: Framer, batch: Sample, noisy: NoisyBatch) -> None:
        settings = self._config.framer
        if settings.method == "sra":
            indices = torch.as_tensor(batch["index"]).tolist()
            sigmas = teacher_sigmas(noisy.sigmas, indices, self._config.seed, gap=settings.sra.noise_gap)
            noisy = self._objective.at(noisy.latents, noisy.noise, sigmas)
        inputs = self._inputs(noisy, batch["lr_upsampled"].to(self._device))
        was_training = self._model.training
        self._model.eval()
        with self._averaged(), framer.capture_teacher():
            self._model(**inputs)
        self._model.train(was_training)
