"""The forward half of a micro-step: from a batch to its losses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from framer.alignment.sra import teacher_sigmas
from framer.config.training import TrainConfig
from framer.data.dataset import Sample
from framer.distill import Framer, FramerOutput
from framer.models.base_model import BaseModel, load_base_model
from framer.models.latents import Moments
from framer.models.restoration_model import RestorationModel
from framer.models.text import TextEmbeddings
from framer.objectives import FlowMatching, NoisyBatch, Supervision, build_objective
from framer.training.text_dropping import with_texts_dropped


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


class _Seen(NamedTuple):
    """What a batch is to the model."""

    noisy: NoisyBatch
    reference: Tensor
    """What is known of the images, ``[B, C', h, w]``."""
    text: TextEmbeddings | None
    """Of each image, some of them the empty text; None where all see the same."""


class ForwardPass:
    """Takes batches through the model.

    Texts and latents that were prepared are taken from the batch; otherwise all images see one text, and latents are
    encoded here.

    Args:
        model: The model and what stands between it and images.
        config: The run.
        framer: Captures the model's features; None without an alignment loss.
        null_text: Embeddings of the empty text, where images have texts of their own.
        averaged: Lets the model be the average of its weights meanwhile, where that one teaches.
    """

    def __init__(
        self,
        model: RestorationModel,
        config: TrainConfig,
        framer: Framer | None,
        *,
        null_text: TextEmbeddings | None = None,
        averaged: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._model = model
        self._config = config
        self._framer = framer
        self._averaged = averaged
        self._null_text = null_text
        self._objective = build_objective(config.objective, model.latents)
        self.base_model = _base_model(model, config, null_text)

    def prepare(self, batch: Sample) -> tuple[NoisyBatch, dict[str, Any]]:
        """A batch with its noise, which depends on nothing but the samples' numbers, and the model's arguments.

        Args:
            batch: Samples with a leading batch axis.
        """
        seen = self._seen(batch)
        return seen.noisy, self._inputs(seen)

    def _seen(self, batch: Sample) -> _Seen:
        latents, device, seed = self._model.latents, self._model.device, self._config.seed
        indices = torch.as_tensor(batch["index"]).tolist()
        upsampled = batch["lr_upsampled"].to(device)
        if "hr_latents_mean" in batch:
            moments = Moments(batch["hr_latents_mean"].to(device), batch["hr_latents_logvar"].to(device))
            reference = latents.reference_of_mean(batch["lr_latents_mean"].to(device), upsampled)
            clean = latents.draw(moments, indices=indices, seed=seed)
        else:
            reference = latents.reference(upsampled)
            clean = latents.encode(batch["hr"].to(device), upsampled, indices=indices, seed=seed)
        noisy = self._objective.add_noise(clean, reference, indices, seed)
        return _Seen(noisy, reference, self._seen_texts(batch))

    def _seen_texts(self, batch: Sample) -> TextEmbeddings | None:
        texts, probability = _texts(batch, self._model.device), self._config.data.null_text_probability
        if texts is None or not probability:
            return texts
        if self._null_text is None:
            raise ValueError(f"texts are to be dropped with probability {probability}: pass null_text")
        indices = torch.as_tensor(batch["index"]).tolist()
        return with_texts_dropped(texts, self._null_text, indices, self._config.seed, probability=probability)

    def _inputs(self, seen: _Seen) -> dict[str, Any]:
        return self._model.inputs(seen.noisy.sample, seen.reference, seen.noisy.timesteps, text=seen.text)

    def losses(self, run: Callable[..., Any], batch: Sample) -> Losses:
        """Runs the model once and computes both losses; with an alignment loss a collective call.

        Where the average of the weights teaches, it runs before that, without gradients.

        Args:
            run: Runs the model: the engine around it, or the model itself.
            batch: Samples with a leading batch axis.
        """
        seen = self._seen(batch)
        noisy, inputs = seen.noisy, self._inputs(seen)
        out: FramerOutput | None = None
        if self._framer is None:
            output = run(**inputs).sample
        else:
            if self._config.framer.teacher == "ema":
                self._capture_teacher(self._framer, batch, seen)
            with self._framer.capture():
                output = run(**inputs).sample
            images = batch["hr"].to(self._model.device) if self._config.framer.method == "repa" else None
            out = self._framer.loss(sample=noisy.sample, sigmas=noisy.sigmas, images=images)
        supervision: Supervision | None = None
        if self._objective.supervised:
            device = self._model.device
            # As in PiSA-SR, the empty text is for the trained model alone: beside the negative one, which is the same,
            # it would leave no gradient.
            base = None if self.base_model is None else partial(self.base_model, text=_texts(batch, device))
            supervision = Supervision(batch["hr"].to(device), batch["lr_upsampled"].to(device), base)
        noise_loss = self._objective.loss(output, noisy, supervision)
        return Losses(inputs, out, noise_loss, noise_loss.new_zeros(()) if out is None else out.total)

    def _capture_teacher(self, framer: Framer, batch: Sample, seen: _Seen) -> None:
        settings, model = self._config.framer, self._model.model
        if settings.method == "sra":
            indices = torch.as_tensor(batch["index"]).tolist()
            sigmas = teacher_sigmas(seen.noisy.sigmas, indices, self._config.seed, gap=settings.sra.noise_gap)
            seen = seen._replace(noisy=FlowMatching.at(seen.noisy.latents, seen.noisy.noise, sigmas))
        inputs = self._inputs(seen)
        was_training = model.training
        model.eval()
        with self._averaged(), framer.capture_teacher():
            model(**inputs)
        model.train(was_training)


def _texts(batch: Sample, device: torch.device) -> TextEmbeddings | None:
    if "prompt_embeds" not in batch:
        return None
    pooled = batch["pooled_prompt_embeds"].to(device) if "pooled_prompt_embeds" in batch else None
    return TextEmbeddings(batch["prompt_embeds"].to(device), pooled)


def _base_model(model: RestorationModel, config: TrainConfig, null_text: TextEmbeddings | None) -> BaseModel | None:
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
        null_text=null_text,
    )
