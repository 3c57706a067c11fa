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
from framer.models.latents import LatentSpace
from framer.objectives import FlowMatching

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


def compute_losses(
    forward: Callable[..., Any],
    model: SD3Transformer2DModel,
    batch: Sample,
    *,
    config: TrainConfig,
    latents: LatentSpace,
    objective: FlowMatching,
    framer: Framer | None,
    device: torch.device,
) -> Losses:
    """Draws noise, runs the model once and computes both losses; with FRAMER a collective call.

    Args:
        forward: Runs the model: the engine around it, or the model itself.
        model: The model, which tells the inputs' sizes and dtype.
        batch: Samples with a leading batch axis.
        config: The run.
        latents: The space that is diffused.
        objective: The noise objective.
        framer: Captures the model's features; None without FRAMER.
        device: Where the model is.
    """
    dtype = next(model.parameters()).dtype
    upsampled = batch["lr_upsampled"].to(device)
    noisy = objective.add_noise(
        latents.encode(batch["hr"].to(device), upsampled), torch.as_tensor(batch["index"]).tolist(), config.seed
    )
    condition = latents.condition(upsampled).to(dtype)
    inputs = model_inputs(
        model, noisy.sample.to(dtype), condition, noisy.timesteps, text_tokens=config.model.text_tokens
    )
    out: FramerOutput | None = None
    if framer is None:
        output = forward(**inputs).sample
    else:
        with framer.capture():
            output = forward(**inputs).sample
        out = framer.loss(sample=noisy.sample, sigmas=noisy.sigmas)
    noise_loss = objective.loss(output, noisy)
    return Losses(inputs, out, noise_loss, noise_loss.new_zeros(()) if out is None else out.total)
