"""From a low-resolution image to a high-resolution one, tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from framer.inference.tiling import blend_tiles
from framer.models.latents import LatentSpace
from framer.objectives import Objective

TiledModel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(sample [b, C, h, w], reference [b, Cr, h, w], timesteps [b] float32) -> output [b, C, h, w]``."""


@dataclass(frozen=True)
class Restorer:
    """Turns bicubically upscaled images into restored ones.

    Args:
        model: Runs the model on tiles.
        latents: The space it diffuses.
        objective: What it was trained on, which knows how to sample it.
        tile: Height and width of a tile, in pixels; the size the model was trained at.
        tile_overlap: Part of a tile that its neighbour covers too.
        patch_size: The model's patch size, in latents; image sizes must be multiples of it.
        num_inference_steps: Sampling steps.
    """

    model: TiledModel
    latents: LatentSpace
    objective: Objective
    tile: int
    tile_overlap: float
    patch_size: int
    num_inference_steps: int

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
            ValueError: H or W is not a multiple of the patch size, in pixels.
        """
        height, width = upsampled.shape[-2:]
        downscale, channels = self.latents.downscale, self.latents.channels
        patch = self.patch_size * downscale
        if height % patch or width % patch:
            raise ValueError(
                f"image size {height}x{width} is not a multiple of the patch size {self.patch_size}"
                + (f" times the {downscale} pixels of a latent" if downscale > 1 else "")
            )
        reference = self.latents.reference(upsampled)

        def predict(sample: Tensor, timestep: Tensor) -> Tensor:
            def of_tiles(tiles: Tensor) -> Tensor:
                noisy, known = tiles[:, :channels], tiles[:, channels:]
                timesteps = timestep.to(tiles.device, torch.float32).expand(tiles.shape[0])
                return self.objective.prediction(self.model(noisy, known, timesteps), noisy, timesteps)

            return blend_tiles(
                of_tiles,
                torch.cat([sample, reference], dim=1),
                tile=self.tile // downscale,
                overlap=int(self.tile * self.tile_overlap) // downscale,
                multiple=self.patch_size,
            )

        sample = self.objective.sample(predict, reference, channels=channels, steps=self.num_inference_steps, seed=seed)
        return self.latents.decode(sample, upsampled)
