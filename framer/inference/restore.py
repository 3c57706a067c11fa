"""From a low-resolution image to a high-resolution one, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from framer.errors import UserError
from framer.inference.tiling import TileGrid, blend_tiles
from framer.models.latents import LatentSpace
from framer.models.text import TextEmbeddings
from framer.objectives import Objective

TiledModel = Callable[..., Tensor]
"""``(sample [b, C, h, w], reference [b, C', h, w], timesteps [b] float32) -> output [b, C, h, w]``; where there is a
prompt, also with the keyword ``text``."""


class Prompt(NamedTuple):
    """The text that an image is restored with."""

    text: TextEmbeddings
    """Of one image."""
    negative: TextEmbeddings | None = None
    """What the image should not be like; needed where the guidance scale is not 1."""
    guidance_scale: float = 1.0
    """g of classifier-free guidance (arXiv 2207.12598), ``negative + g * (text - negative)`` of what the model
    predicts; 1 asks the model once a step, any other value twice."""

    def check(self) -> None:
        """Refuses a guidance without a negative text.

        Raises:
            UserError: The scale is not 1, and there is no negative text; or it is not finite.
        """
        if not math.isfinite(self.guidance_scale):
            raise UserError(f"guidance scale {self.guidance_scale}: expected a finite number")
        if self.guidance_scale != 1 and self.negative is None:
            raise UserError(f"guidance scale {self.guidance_scale:g} needs the embeddings of a negative or empty text")


@dataclass(frozen=True)
class Restorer:
    """Turns bicubically upscaled images into restored ones.

    What is as large as the image stays where the image is; the model, and what it computes, are as large as a batch of
    tiles.

    Args:
        model: Runs the model on tiles.
        latents: The space it diffuses.
        objective: What it was trained on, which knows how to sample it.
        tile: Height and width of a tile of latents; the size the model was trained at.
        tile_overlap: Part of a tile that its neighbour covers too.
        multiple: Heights and widths of latents must be multiples of it, the patch size for example.
        num_inference_steps: Sampling steps.
        tile_batch: Tiles that the model sees at once.
        device: Where tiles go; where the images are by default.
        start_from_image: Whether sampling starts from the low-resolution image under noise, instead of noise alone.
        strength: How much noise that is, see :meth:`Objective.sample`.
    """

    model: TiledModel
    latents: LatentSpace
    objective: Objective
    tile: int
    tile_overlap: float
    multiple: int
    num_inference_steps: int
    tile_batch: int = 16
    device: torch.device | None = None
    start_from_image: bool = False
    strength: float = 1.0

    def grid(self, height: int, width: int) -> TileGrid:
        """Tiles of latents that cover an image of ``height`` and ``width`` pixels."""
        downscale = self.latents.shape.downscale
        size = (height // downscale, width // downscale)
        return TileGrid.over(size, tile=self.tile, overlap=self._overlap, multiple=self.multiple)

    @property
    def pixels(self) -> int:
        """What heights and widths of images must be multiples of."""
        return self.multiple * self.latents.shape.downscale

    @property
    def _overlap(self) -> int:
        return int(self.tile * self.tile_overlap)

    @torch.no_grad()
    def __call__(
        self,
        upsampled: Tensor,
        *,
        seed: int,
        prompt: Prompt | None = None,
        on_tiles: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Restores a batch.

        Args:
            upsampled: Low-resolution images at the target size, ``[B, 3, H, W]`` in [-1, 1].
            seed: Seed of the initial noise, which depends on an image's place in the batch and its size, not on the
                other images.
            prompt: The text of all images; the model's own by default.
            on_tiles: Called with the number of tiles that the model has seen since the last call, step by step.

        Returns:
            ``[B, 3, H, W]`` float32 in [-1, 1]; NaN where the model's output is not finite.

        Raises:
            ValueError: The latents' height or width is not a multiple of ``multiple``.
            UserError: The start or the prompt cannot be used.
        """
        height, width = upsampled.shape[-2:]
        if height % self.pixels or width % self.pixels:
            raise ValueError(f"image size {height}x{width} is not a multiple of {self.pixels} pixels")
        steps = self.num_inference_steps
        self.objective.check_start(from_image=self.start_from_image, strength=self.strength, steps=steps)
        reference = self.latents.reference(upsampled)

        def predict(sample: Tensor, timestep: Tensor) -> Tensor:
            def of_tiles(noisy: Tensor, known: Tensor) -> Tensor:
                timesteps = timestep.to(noisy.device, torch.float32).expand(len(noisy))
                prediction = self._prediction(noisy, known, timesteps, prompt)
                if on_tiles is not None:
                    on_tiles(len(noisy))
                return prediction

            return blend_tiles(
                of_tiles,
                sample,
                reference,
                tile=self.tile,
                overlap=self._overlap,
                multiple=self.multiple,
                batch=self.tile_batch,
                device=self.device,
            )

        sample = self.objective.sample(
            predict,
            reference,
            channels=self.latents.shape.channels,
            steps=steps,
            seed=seed,
            start=self.latents.of_upsampled(upsampled) if self.start_from_image else None,
            strength=self.strength,
        )
        return self.latents.decode(sample, upsampled)

    def _prediction(self, noisy: Tensor, known: Tensor, timesteps: Tensor, prompt: Prompt | None) -> Tensor:
        """What the model predicts of tiles, guided where the prompt says so."""

        def one(**text: Any) -> Tensor:
            return self.objective.prediction(self.model(noisy, known, timesteps, **text), noisy, timesteps)

        if prompt is None:
            return one()
        prompt.check()
        positive = one(text=prompt.text)
        if prompt.guidance_scale == 1:
            return positive
        negative = one(text=prompt.negative)
        return negative + prompt.guidance_scale * (positive - negative)
