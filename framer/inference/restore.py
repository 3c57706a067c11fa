"""Sampling the flow from noise to a high-resolution image, given the low-resolution one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from framer.inference.tiling import blend_tiles
from framer.models.latents import LatentSpace
from framer.objectives import NUM_TRAIN_TIMESTEPS
from framer.seeding import normal_per_sample

VelocityModel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(sample [B, C, h, w], reference [B, C', h, w], timesteps [B]) -> velocity [B, C, h, w]``; the reference as
:meth:`LatentSpace.reference` gives it."""


@dataclass(frozen=True)
class Restorer:
    """Turns bicubically upscaled images into restored ones.

    Args:
        velocity: The model.
        latents: The space it diffuses.
        tile: Height and width of a tile of latents; the size the model was trained at.
        tile_overlap: Part of a tile that its neighbour covers too.
        multiple: Heights and widths of latents must be multiples of it, the patch size for example.
        num_inference_steps: Euler steps.
        timestep_shift: SD3's resolution shift, that of training.
    """

    velocity: VelocityModel
    latents: LatentSpace
    tile: int
    tile_overlap: float
    multiple: int
    num_inference_steps: int
    timestep_shift: float

    @torch.no_grad()
    def __call__(self, upsampled: Tensor, *, seed: int) -> Tensor:
        """Restores a batch.

        Args:
            upsampled: Low-resolution images at the target size, ``[B, 3, H, W]`` in [-1, 1].
            seed: Seed of the initial noise, which depends on an image's place in the batch and its size, not on the
                other images.

        Returns:
            ``[B, 3, H, W]`` float32 in [-1, 1].

        Raises:
            ValueError: The latents' height or width is not a multiple of ``multiple``.
        """
        reference = self.latents.reference(upsampled)
        size, _, height, width = reference.shape
        if height % self.multiple or width % self.multiple:
            pixels = self.multiple * self.latents.shape.downscale
            raise ValueError(
                f"image size {upsampled.shape[2]}x{upsampled.shape[3]} is not a multiple of {pixels} pixels"
            )
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, shift=self.timestep_shift)
        # Evenly spaced from 1; the scheduler's own spacing would spend its last step next to zero.
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / self.num_inference_steps, self.num_inference_steps))
        channels = self.latents.shape.channels
        shape = (channels, height, width)
        sample = normal_per_sample(shape, list(range(size)), seed, "initial noise").to(upsampled.device)
        for timestep in scheduler.timesteps:

            def velocity_of_tiles(tiles: Tensor, timestep: Tensor = timestep) -> Tensor:
                timesteps = timestep.to(tiles.device, torch.float32).expand(tiles.shape[0])
                return self.velocity(tiles[:, :channels], tiles[:, channels:], timesteps)

            velocity = blend_tiles(
                velocity_of_tiles,
                torch.cat([sample, reference], dim=1),
                tile=self.tile,
                overlap=int(self.tile * self.tile_overlap),
                multiple=self.multiple,
            )
            sample = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
        return self.latents.decode(sample, upsampled)
