"""Flow matching: from noise to image along straight lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from framer.config.objective import NUM_TRAIN_TIMESTEPS, ObjectiveConfig
from framer.errors import UserError
from framer.objectives.base import NoisyBatch, Objective, Predict, Supervision, draw_noise, initial_noise
from framer.seeding import normal_per_sample

MIN_SIGMA = 0.05
"""Smallest sigma that an error of the clean sample is divided by."""


class FlowMatching(Objective):
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

    def add_noise(self, latents: Tensor, reference: Tensor, indices: Sequence[int], seed: int) -> NoisyBatch:
        """Draws noise and timestep of each sample and mixes them, see :meth:`Objective.add_noise`."""
        latents, keys = latents.float(), list(indices)
        noise = draw_noise(latents, keys, seed)
        logits = normal_per_sample((), keys, seed, "timestep").to(latents.device)
        sigmas = self.shift(torch.sigmoid(self.config.logit_mean + self.config.logit_std * logits))
        return self.at(latents, noise, sigmas)

    def at_timestep(self, latents: Tensor, reference: Tensor, noise: Tensor, timestep: int) -> NoisyBatch:
        """Mixes given noise into the latents at sigma ``timestep / 1000``."""
        sigmas = torch.full((len(latents),), timestep / NUM_TRAIN_TIMESTEPS, device=latents.device)
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

    def prediction(self, output: Tensor, sample: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity that the output means."""
        return self.velocity(output, sample, timesteps / NUM_TRAIN_TIMESTEPS)

    def loss(self, output: Tensor, batch: NoisyBatch, supervision: Supervision | None = None) -> Tensor:
        """Mean squared error of the target, see :meth:`Objective.loss`."""
        level = batch.sigmas.view(-1, 1, 1, 1)
        # x0 = sample - sigma * velocity: the error of x0 is sigma times that of the velocity.
        if self.config.prediction_type == "velocity":
            error = output.float() - (batch.noise - batch.latents)
            return (error * level if self.config.target == "x0" else error).square().mean()
        error = output.float() - batch.latents
        # The velocity's error grows without bound at the clean end; JiT (arXiv 2511.13720) clips there too.
        return (error if self.config.target == "x0" else error / level.clamp(min=MIN_SIGMA)).square().mean()

    def check_start(self, *, from_image: bool, strength: float, steps: int) -> None:
        """Also refuses a start that noise would cover, see :meth:`Objective.check_start`."""
        super().check_start(from_image=from_image, strength=strength, steps=steps)
        if from_image and strength == 1:
            raise UserError(
                "strength 1 has no trace of the image in its first sample, (1 - strength) * image + strength * noise; "
                "give a strength below 1, such as 0.9"
            )

    def sample(
        self,
        predict: Predict,
        reference: Tensor,
        *,
        channels: int,
        steps: int,
        seed: int,
        start: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Follows the velocity in Euler steps from noise, or from ``(1 - strength) * start + strength * noise``.

        See :meth:`Objective.sample`.
        """
        self.check_start(from_image=start is not None, strength=strength, steps=steps)
        scheduler = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=NUM_TRAIN_TIMESTEPS, shift=self.config.timestep_shift
        )
        # Evenly spaced from 1; the scheduler's own spacing would spend its last step next to zero.
        first = self._unshifted(strength)
        scheduler.set_timesteps(sigmas=np.linspace(first, first / steps, steps))
        sample = initial_noise(reference, channels, seed)
        if start is not None:
            sample.mul_(strength).add_(start, alpha=1 - strength)
        for timestep in scheduler.timesteps:
            sample = scheduler.step(predict(sample, timestep), timestep, sample, return_dict=False)[0]
        return sample

    def _unshifted(self, sigma: float) -> float:
        """The sigma that :meth:`shift` makes this one of."""
        s = self.config.timestep_shift
        return sigma / (s - (s - 1) * sigma)

    def describe_sampling(self, steps: int) -> str:
        """Euler steps."""
        return f"{steps} Euler steps from noise"
