"""The forward half of a micro-step: from a batch to its losses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from framer.alignment.sra import teacher_sigmas
from framer.config.training import TrainConfig
from framer.data.dataset import Sample
from framer.distill import Framer, FramerOutput
from framer.models.base_model import BaseModel, load_base_model
from framer.models.restoration_model import RestorationModel
from framer.objectives import FlowMatching, NoisyBatch, Supervision, build_objective


class Losses(NamedTuple):
    """What a batch amounts to."""

    inputs: dict[str, Any]
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
        model: The model and what stands between it and images.
        config: The run.
        framer: Captures the model's features; None without an alignment loss.
        averaged: Lets the model be the average of its weights meanwhile, where that one teaches.
    """

    def __init__(
        self,
        model: RestorationModel,
        config: TrainConfig,
        framer: Framer | None,
        *,
        averaged: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._model = model
        self._config = config
        self._framer = framer
        self._averaged = averaged
        self._objective = build_objective(config.objective, model.latents)
        self.base_model = _base_model(model, config)

    def prepare(self, batch: Sample) -> tuple[NoisyBatch, dict[str, Any]]:
        """A batch with its noise, which depends on nothing but the samples' numbers, and the model's arguments.

        Args:
            batch: Samples with a leading batch axis.
        """
        noisy, reference = self._noisy(batch)
        return noisy, self._model.inputs(noisy.sample, reference, noisy.timesteps)

    def _noisy(self, batch: Sample) -> tuple[NoisyBatch, Tensor]:
        """A batch with its noise, and what is known of the images."""
        model, seed = self._model, self._config.seed
        indices = torch.as_tensor(batch["index"]).tolist()
        upsampled = batch["lr_upsampled"].to(model.device)
        reference = model.latents.reference(upsampled)
        latents = model.latents.encode(batch["hr"].to(model.device), upsampled, indices=indices, seed=seed)
        return self._objective.add_noise(latents, reference, indices, seed), reference

    def losses(self, run: Callable[..., Any], batch: Sample) -> Losses:
        """Runs the model once and computes both losses; with an alignment loss a collective call.

        Where the average of the weights teaches, it runs before that, without gradients.

        Args:
            run: Runs the model: the engine around it, or the model itself.
            batch: Samples with a leading batch axis.
        """
        noisy, reference = self._noisy(batch)
        inputs = self._model.inputs(noisy.sample, reference, noisy.timesteps)
        out: FramerOutput | None = None
        if self._framer is None:
            output = run(**inputs).sample
        else:
            if self._config.framer.teacher == "ema":
                self._capture_teacher(self._framer, batch, noisy, reference)
            with self._framer.capture():
                output = run(**inputs).sample
            images = batch["hr"].to(self._model.device) if self._config.framer.method == "repa" else None
            out = self._framer.loss(sample=noisy.sample, sigmas=noisy.sigmas, images=images)
        supervision: Supervision | None = None
        if self._objective.supervised:
            device = self._model.device
            supervision = Supervision(batch["hr"].to(device), batch["lr_upsampled"].to(device), self.base_model)
        noise_loss = self._objective.loss(output, noisy, supervision)
        return Losses(inputs, out, noise_loss, noise_loss.new_zeros(()) if out is None else out.total)

    def _capture_teacher(self, framer: Framer, batch: Sample, noisy: NoisyBatch, reference: Tensor) -> None:
        settings, model = self._config.framer, self._model.model
        if settings.method == "sra":
            indices = torch.as_tensor(batch["index"]).tolist()
            sigmas = teacher_sigmas(noisy.sigmas, indices, self._config.seed, gap=settings.sra.noise_gap)
            noisy = FlowMatching.at(noisy.latents, noisy.noise, sigmas)
        inputs = self._model.inputs(noisy.sample, reference, noisy.timesteps)
        was_training = model.training
        model.eval()
        with self._averaged(), framer.capture_teacher():
            model(**inputs)
        model.train(was_training)


def _base_model(model: RestorationModel, config: TrainConfig) -> BaseModel | None:
    if not config.objective.csd_weight or config.objective.csd_base is None:
        return None
    shape = model.latents.shape
    return load_base_model(
        Path(config.objective.csd_base).expanduser(),
        config.model,
        channels=shape.channels,
        downscale=shape.downscale,
        device=model.device,
        dtype=next(model.model.parameters()).dtype,
    )
