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
"""``(sample [b, C, h, w], reference [b, C', h, w], timesteps [b] float32) -> output [b, C, h, w]``."""


@dataclass(frozen=True)
class Restorer:
    """Turns bicubically upscaled images into restored ones.

    Args:
        model: Runs the model on tiles.
        latents: The space it diffuses.
        objective: What it was trained on, which knows how to sample it.
        tile: Height and width of a tile of latents; the size the model was trained at.
        tile_overlap: Part of a tile that its neighbour covers too.
        multiple: Heights and widths of latents must be multiples of it, the patch size for example.
        num_inference_steps: Sampling steps.
    """

    model: TiledModel
    latents: LatentSpace
    objective: Objective
    tile: int
    tile_overlap: float
    multiple: int
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
            ValueError: The latents' height or width is not a multiple of ``multiple``.
        """
        reference, channels = self.latents.reference(upsampled), self.latents.shape.channels
        height, width = reference.shape[-2:]
        if height % self.multiple or width % self.multiple:
            pixels = self.multiple * self.latents.shape.downscale
            raise ValueError(
                f"image size {upsampled.shape[2]}x{upsampled.shape[3]} is not a multiple of {pixels} pixels"
            )

        def predict(sample: Tensor, timestep: Tensor) -> Tensor:
            def of_tiles(tiles: Tensor) -> Tensor:
                noisy, known = tiles[:, :channels], tiles[:, channels:]
                timesteps = timestep.to(tiles.device, torch.float32).expand(tiles.shape[0])
                return self.objective.prediction(self.model(noisy, known, timesteps), noisy, timesteps)

            return blend_tiles(
                of_tiles,
                torch.cat([sample, reference], dim=1),
                tile=self.tile,
                overlap=int(self.tile * self.tile_overlap),
                multiple=self.multiple,
            )

        sample = self.objective.sample(predict, reference, channels=channels, steps=self.num_inference_steps, seed=seed)
        return self.latents.decode(sample, upsampled)
