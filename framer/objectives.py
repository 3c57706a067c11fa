"""The noise objective: what the model is trained on beside FRAMER."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from framer.config.model import ObjectiveConfig
from framer.seeding import normal_per_sample

NUM_TRAIN_TIMESTEPS = 1000
MIN_SIGMA = 0.05
"""Smallest sigma that an error of the clean sample is divided by."""


class NoisyBatch(NamedTuple):
    """Latents on their way to noise."""

    latents: Tensor
    """Clean latents, ``[B, C, H, W]`` float32."""
    noise: Tensor
    """Standard normal, ``[B, C, H, W]`` float32."""
    sample: Tensor
    """``(1 - sigma) * latents + sigma * noise``, ``[B, C, H, W]`` float32."""
    sigmas: Tensor
    """``[B]`` float32 in (0, 1)."""
    timesteps: Tensor
    """``sigmas * 1000``, ``[B]`` float32: bf16 would round 998.39 to 1000."""


class FlowMatching:
    """Rectified flow with logit-normal timesteps, as Stable Diffusion 3 (arXiv 2403.03206, section 3.1).

    Args:
        config: Target, distribution of sigma and resolution shift.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config

    def shift(self, sigmas: Tensor) -> Tensor:
        """SD3's resolution shift, equation 23: ``s * sigma / (1 + (s - 1) * sigma)``."""
        s = self.config.timestep_shift
        return s * sigmas / (1 + (s - 1) * sigmas)

    def add_noise(self, latents: Tensor, indices: Sequence[int], seed: int) -> NoisyBatch:
        """Draws noise and timestep of each sample and mixes them.

        Args:
            latents: ``[B, C, H, W]``, computed in float32.
            indices: The samples' indices in the training stream, length B; the draws depend on them and ``seed`` alone.
            seed: The run's seed.

        Raises:
            ValueError: There are not as many indices as samples.
        """
        latents = latents.float()
        keys = list(indices)
        if len(keys) != len(latents):
            raise ValueError(f"{len(keys)} indices for {len(latents)} samples")
        noise = normal_per_sample(latents.shape[1:], keys, seed, "noise").to(latents.device)
        logits = normal_per_sample((), keys, seed, "timestep").to(latents.device)
        sigmas = self.shift(torch.sigmoid(self.config.logit_mean + self.config.logit_std * logits))
        return self.at(latents, noise, sigmas)

    @staticmethod
    def at(latents: Tensor, noise: Tensor, sigmas: Tensor) -> NoisyBatch:
        """Mixes given noise into the latents at given ``sigmas`` ``[B]``."""
        level = sigmas.view(-1, 1, 1, 1)
        return NoisyBatch(latents, noise, (1 - level) * latents + level * noise, sigmas, sigmas * NUM_TRAIN_TIMESTEPS)

    def velocity(self, output: Tensor, sample: Tensor, sigmas: Tensor) -> Tensor:
        """The velocity that a model output means, ``[B, C, H, W]`` float32.

        Args:
            output: The model's output, ``[B, C, H, W]``.
            sample: The noisy latents that it saw.
            sigmas: ``[B]``, above 0.
        """
        if self.config.prediction_type == "velocity":
            return output.float()
        return (sample - output.float()) / sigmas.view(-1, 1, 1, 1)

    def loss(self, output: Tensor, batch: NoisyBatch) -> Tensor:
        """Mean squared error of the target, a float32 scalar.

        Args:
            output: The model's output, ``[B, C, H, W]``.
            batch: What the model saw.
        """
        level = batch.sigmas.view(-1, 1, 1, 1)
        # x0 = sample - sigma * velocity: the error of x0 is sigma times that of the velocity.
        if self.config.prediction_type == "velocity":
            error = output.float() - (batch.noise - batch.latents)
            return (error * level if self.config.target == "x0" else error).square().mean()
        error = output.float() - batch.latents
        # The velocity's error grows without bound at the clean end; JiT (arXiv 2511.13720) clips there too.
        return (error if self.config.target == "x0" else error / level.clamp(min=MIN_SIGMA)).square().mean()
