"""The space that is diffused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from framer.config.model import ModelConfig

DETAIL_WINDOW = 9
"""Height and width of the local mean, in pixels: about two low-resolution pixels at scale 4."""


@dataclass(frozen=True)
class LatentSpace:
    """Maps images to what the model diffuses and back.

    ``pixel`` diffuses the image itself. ``residual`` diffuses ``scale * (image - upsampled)``, what the bicubic
    upscaling lacks (as SRDiff, arXiv 2104.14951): a model that predicts zero already equals bicubic.

    Args:
        kind: ``pixel`` or ``residual``.
        scale: Factor of the residual; about one over its standard deviation.
    """

    kind: Literal["pixel", "residual"] = "residual"
    scale: float = 6.0
    channels: int = 3
    downscale: int = 1
    """Pixels a side of one latent."""

    def reference(self, upsampled: Tensor) -> Tensor:
        """What is known of the image at the latents' resolution, ``[B, 3, H, W]``: the upscaled image itself."""
        return upsampled

    def encode(self, image: Tensor, upsampled: Tensor) -> Tensor:
        """Latents ``[B, C, H, W]`` of ``image`` ``[B, 3, H, W]`` in [-1, 1].

        Args:
            image: The high-resolution image.
            upsampled: Its low-resolution version, bicubically upscaled to the same size.
        """
        return (image - upsampled) * self.scale if self.kind == "residual" else image

    @property
    def condition_channels(self) -> int:
        """Channels of :meth:`condition`."""
        return 6 if self.kind == "residual" else 3

    def condition(self, upsampled: Tensor) -> Tensor:
        """What the model sees of the low-resolution image, ``[B, condition_channels, H, W]``.

        The upscaled image; for ``residual`` also its own detail, the difference to its local mean, on the scale of the
        latents. In the image itself this detail, from which the residual is to be guessed, is small against the mean
        colour and against the noise beside it, and a small model learns to use it only late.

        Args:
            upsampled: The low-resolution image, bicubically upscaled, ``[B, 3, H, W]`` in [-1, 1].
        """
        if self.kind == "pixel":
            return upsampled
        mean = F.avg_pool2d(upsampled, DETAIL_WINDOW, 1, DETAIL_WINDOW // 2, count_include_pad=False)
        return torch.cat([upsampled, self.scale * (upsampled - mean)], dim=1)

    def decode(self, latents: Tensor, upsampled: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]``, clamped to [-1, 1]; the inverse of :meth:`encode`."""
        image = upsampled + latents / self.scale if self.kind == "residual" else latents
        return image.clamp(-1, 1)


def build_latents(config: ModelConfig) -> LatentSpace:
    """The space that ``model.latents`` names."""
    return LatentSpace(config.latents, config.latents_scale if config.latents == "residual" else 1.0)
