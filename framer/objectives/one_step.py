"""Restoring in one step, from the low-resolution image instead of from noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from framer.config.objective import ObjectiveConfig
from framer.errors import UserError
from framer.models.latents import LatentSpace
from framer.objectives.base import NoisyBatch, Objective, Predict, Supervision, draw_noise
from framer.objectives.diffusion import schedule_settings
from framer.objectives.perceptual import PerceptualLoss
from framer.objectives.score_distillation import score_distillation_gradient, score_distillation_loss
from framer.seeding import integer_per_sample


class OneStep(Objective):
    """PiSA-SR's scheme (arXiv 2412.03017): ``z_H = z_L - model(z_L, t)``, trained on what ``z_H`` looks like.

    The first stage takes the squared error alone; the second adds LPIPS and classifier score distillation.

    Args:
        config: Timestep and the losses' weights.
        latents: Decodes; its reference is in the space of its latents.

    Raises:
        UserError: ``lpips_weight`` is above 0, and the library or VGG16's weights are not there.
    """

    supervised = True

    def __init__(self, config: ObjectiveConfig, latents: LatentSpace) -> None:
        self.config = config
        self.fixed_timestep = config.timestep
        self._latents = latents
        self._perceptual = PerceptualLoss() if config.lpips_weight else None
        self._base_schedule = DDPMScheduler(**schedule_settings(zero_terminal_snr=False))

    def add_noise(self, latents: Tensor, reference: Tensor, indices: Sequence[int], seed: int) -> NoisyBatch:
        """Shows the model the reference; noise and timestep are drawn for score distillation alone."""
        keys = list(indices)
        noise = draw_noise(latents, keys, seed)
        batch = self.at_timestep(latents, reference, noise, self.config.timestep)
        if not self.config.csd_weight:
            return batch
        first, last = self.config.csd_timesteps
        drawn = integer_per_sample(first, last, keys, seed, "score timestep")
        return batch._replace(score_timesteps=drawn.to(latents.device))

    def at_timestep(self, latents: Tensor, reference: Tensor, noise: Tensor, timestep: int) -> NoisyBatch:
        """What the model sees: the reference, whatever the noise."""
        sigmas = torch.zeros(len(latents), device=latents.device)
        return NoisyBatch(latents.float(), noise, reference.float(), sigmas, torch.full_like(sigmas, timestep))

    def loss(self, output: Tensor, batch: NoisyBatch, supervision: Supervision | None = None) -> Tensor:
        """The weighted sum of the losses, see :meth:`Objective.loss`.

        Raises:
            ValueError: A loss of images without ``supervision``.
            UserError: Score distillation without a base model.
        """
        restored = batch.sample - output.float()
        loss = restored.new_zeros(())
        if self.config.l2_weight and self.config.space == "latent":
            loss = loss + self.config.l2_weight * (restored - batch.latents).square().mean()
        if self._perceptual is not None or (self.config.l2_weight and self.config.space == "image"):
            loss = loss + self._image_losses(restored, supervision)
        if self.config.csd_weight:
            loss = loss + self.config.csd_weight * self._score_distillation(restored, batch, supervision)
        return loss

    def _image_losses(self, restored: Tensor, supervision: Supervision | None) -> Tensor:
        if supervision is None:
            raise ValueError("the losses of decoded images need the high-resolution images: pass supervision")
        image = self._latents.decode(restored, supervision.upsampled).float()
        target = supervision.image.float()
        loss = image.new_zeros(())
        if self.config.l2_weight and self.config.space == "image":
            loss = loss + self.config.l2_weight * (image - target).square().mean()
        if self._perceptual is not None:
            loss = loss + self.config.lpips_weight * self._perceptual(image, target)
        return loss

    def _score_distillation(self, restored: Tensor, batch: NoisyBatch, supervision: Supervision | None) -> Tensor:
        timesteps = batch.score_timesteps
        if supervision is None or supervision.base_epsilon is None or timesteps is None:
            raise UserError(
                f"objective.csd_weight {self.config.csd_weight}: score distillation asks the frozen base model with "
                "and without text, and this run has none; set objective.csd_weight to 0"
            )
        gradient = score_distillation_gradient(
            restored,
            batch.noise,
            timesteps,
            supervision.base_epsilon,
            signal=self._base_schedule.alphas_cumprod.to(timesteps.device)[timesteps],
            guidance=self.config.csd_guidance,
        )
        return score_distillation_loss(restored, gradient)

    def check_start(self, *, from_image: bool, strength: float, steps: int) -> None:
        """Refuses any strength but 1, see :meth:`Objective.check_start`: there is no noise."""
        if strength != 1:
            raise UserError(f"strength {strength} has no effect on a model that restores in one step without noise")

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
        """Subtracts the model's one answer from the reference, whatever the start, see :meth:`Objective.sample`."""
        self.check_start(from_image=True, strength=strength, steps=steps)
        return reference.float() - predict(reference.float(), torch.tensor(float(self.config.timestep)))

    def describe_sampling(self, steps: int) -> str:
        """One step."""
        return "1 step from the upscaled image"
