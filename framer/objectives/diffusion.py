"""Diffusion with the noise schedule of Stable Diffusion 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from framer.config.objective import NUM_TRAIN_TIMESTEPS, ObjectiveConfig
from framer.errors import UserError
from framer.objectives.base import NoisyBatch, Objective, Predict, Supervision, draw_noise, initial_noise
from framer.seeding import integer_per_sample


def schedule_settings(*, zero_terminal_snr: bool) -> dict[str, Any]:
    """Arguments of diffusers' schedulers for Stable Diffusion's table of noise levels."""
    return {
        "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "rescale_betas_zero_snr": zero_terminal_snr,
    }


class Diffusion(Objective):
    """Predicting noise, velocity or clean sample at uniformly drawn timesteps; sampled by DDIM (arXiv 2010.02502).

    Args:
        config: Prediction type, zero terminal SNR and weighting.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        self._schedule = schedule_settings(zero_terminal_snr=config.zero_terminal_snr)
        self._training = DDPMScheduler(**self._schedule)

    def add_noise(self, latents: Tensor, reference: Tensor, indices: Sequence[int], seed: int) -> NoisyBatch:
        """Draws noise and timestep of each sample and mixes them, see :meth:`Objective.add_noise`."""
        latents, keys = latents.float(), list(indices)
        noise = draw_noise(latents, keys, seed)
        timesteps = integer_per_sample(0, NUM_TRAIN_TIMESTEPS, keys, seed, "timestep").to(latents.device)
        return self.at(latents, noise, timesteps)

    def at_timestep(self, latents: Tensor, reference: Tensor, noise: Tensor, timestep: int) -> NoisyBatch:
        """Mixes given noise into the latents at one timestep for all samples."""
        return self.at(latents, noise, torch.full((len(latents),), timestep, device=latents.device))

    def at(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> NoisyBatch:
        """Mixes given noise into the latents at given ``timesteps``, ``[B]`` int64 of 0 to 999."""
        sample = self._training.add_noise(latents, noise, timesteps)
        sigmas = (1 - self._signal(timesteps)).sqrt()
        return NoisyBatch(latents, noise, sample, sigmas, timesteps.float())

    def _signal(self, timesteps: Tensor) -> Tensor:
        """The signal's share of the sample's variance (alpha bar), ``[B]`` float32."""
        shares: Tensor = self._training.alphas_cumprod.to(timesteps.device)[timesteps]
        return shares

    def loss(self, output: Tensor, batch: NoisyBatch, supervision: Supervision | None = None) -> Tensor:
        """Mean squared error of what the model predicts, weighted if asked for, see :meth:`Objective.loss`."""
        timesteps = batch.timesteps.long()
        if self.config.prediction_type == "epsilon":
            target = batch.noise
        elif self.config.prediction_type == "sample":
            target = batch.latents
        else:
            target = self._training.get_velocity(batch.latents, batch.noise, timesteps)
        errors = (output.float() - target).square()
        if self.config.min_snr_gamma is None:
            return errors.mean()
        return (errors.flatten(1).mean(1) * self.weights(timesteps, self.config.min_snr_gamma)).mean()

    def weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Min-SNR's weights, ``[B]`` float32: that of the clean sample's error is ``min(SNR, gamma)``.

        Args:
            timesteps: ``[B]`` int64.
            gamma: Where the signal-to-noise ratio is cut.
        """
        signal = self._signal(timesteps)
        ratio = signal / (1 - signal)
        weights = ratio.clamp(max=gamma)
        # The error of the noise is SNR times that of the clean sample, the error of v is SNR + 1 times.
        if self.config.prediction_type == "epsilon":
            return weights / ratio
        return weights if self.config.prediction_type == "sample" else weights / (ratio + 1)

    def check_start(self, *, from_image: bool, strength: float, steps: int) -> None:
        """Also refuses a strength that leaves no step, see :meth:`Objective.check_start`."""
        super().check_start(from_image=from_image, strength=strength, steps=steps)
        if not self._timesteps_from(self._sampler(steps).timesteps, strength):
            raise UserError(f"strength {strength} leaves none of {steps} steps; give more of either")

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
        """Takes DDIM steps without added noise, see :meth:`Objective.sample`.

        A ``start`` gets the noise of the first timestep; a strength below 1 leaves out the timesteps above it.
        """
        self.check_start(from_image=start is not None, strength=strength, steps=steps)
        scheduler = self._sampler(steps)
        timesteps = self._timesteps_from(scheduler.timesteps, strength)
        sample = initial_noise(reference, channels, seed)
        if start is not None:
            sample = scheduler.add_noise(start, sample, timesteps[0].expand(len(start)))
        clean = sample
        for timestep in timesteps:
            sample, clean = scheduler.step(predict(sample, timestep), timestep, sample, return_dict=False)
        # Where steps does not divide 1000, the scheduler's last sample still has the noise of timestep 0.
        return clean

    def _sampler(self, steps: int) -> Any:
        # Trailing: the first step is at the last timestep, the only one that is close to noise alone.
        scheduler = DDIMScheduler(
            **self._schedule, prediction_type=self.config.prediction_type, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(steps)
        return scheduler

    @staticmethod
    def _timesteps_from(timesteps: Tensor, strength: float) -> list[Tensor]:
        return [timestep for timestep in timesteps if int(timestep) < strength * NUM_TRAIN_TIMESTEPS]

    def describe_sampling(self, steps: int) -> str:
        """DDIM steps."""
        return f"{steps} DDIM steps from noise"
