"""The low-resolution image seen in pixels beside latents that have fewer of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from framer.models.latents import LatentSpace, Moments


class PixelCondition(LatentSpace):
    """A latent space whose condition is the upscaled image itself, its pixels folded into channels.

    So tiles of it fit tiles of latents; :func:`unfolded` gives the image back.

    Args:
        latents: What is diffused.
    """

    def __init__(self, latents: LatentSpace) -> None:
        self._latents = latents
        self.vae = latents.vae
        channels = 3 * latents.shape.downscale**2
        self.shape = latents.shape._replace(reference_channels=channels, condition_channels=channels)

    def encode(self, image: Tensor, upsampled: Tensor, *, indices: Sequence[int], seed: int) -> Tensor:
        """As the latent space does."""
        return self._latents.encode(image, upsampled, indices=indices, seed=seed)

    def reference(self, upsampled: Tensor) -> Tensor:
        """The upscaled image, ``[B, 3*d*d, h, w]`` where a latent pixel has d pixels a side."""
        return F.pixel_unshuffle(upsampled, self.shape.downscale)

    def draw(self, moments: Moments, *, indices: Sequence[int], seed: int) -> Tensor:
        """As the latent space does."""
        return self._latents.draw(moments, indices=indices, seed=seed)

    def reference_of_mean(self, mean: Tensor, upsampled: Tensor) -> Tensor:
        """The upscaled image, whatever its latents."""
        return self.reference(upsampled)

    def condition(self, reference: Tensor) -> Tensor:
        """The same in [0, 1], as diffusers' pipelines give it."""
        return (reference + 1) / 2

    def of_upsampled(self, upsampled: Tensor) -> Tensor:
        """As the latent space does."""
        return self._latents.of_upsampled(upsampled)

    def decode(self, latents: Tensor, upsampled: Tensor) -> Tensor:
        """As the latent space does."""
        return self._latents.decode(latents, upsampled)


def unfolded(condition: Tensor, *, image_height: int) -> Tensor:
    """The image ``[B, 3, H, W]`` of a folded one.

    Args:
        condition: As :class:`PixelCondition` gives it.
        image_height: H.
    """
    return F.pixel_shuffle(condition, image_height // condition.shape[-2])
