"""LPIPS with VGG features, of the optional library ``lpips``."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from framer.errors import UserError
from framer.extras import require

VGG_WEIGHTS = "vgg16-397923af.pth"
"""The file in torch's hub cache that torchvision keeps VGG16's ImageNet weights in."""


class PerceptualLoss:
    """Distance of images in VGG16's features (LPIPS, arXiv 1801.03924); nothing is downloaded.

    Raises:
        MissingExtraError: The library ``lpips`` is not installed.
        UserError: VGG16's weights are not in torch's hub cache.
    """

    def __init__(self) -> None:
        self._library = require("lpips", extra="lpips")
        path = Path(torch.hub.get_dir()) / "checkpoints" / VGG_WEIGHTS
        if not path.is_file():
            raise UserError(
                f"objective.lpips_weight: VGG16's weights are not at {path}, and nothing is downloaded unasked; put "
                f"https://download.pytorch.org/models/{VGG_WEIGHTS} there, or set objective.lpips_weight to 0"
            )

    @cached_property
    def _network(self) -> nn.Module:
        # The library draws weights before it reads them; the run's own draws must not shift.
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = self._library.LPIPS(net="vgg", verbose=False)
        return network.eval().requires_grad_(False)

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """The mean distance, a float32 scalar; gradients flow to ``image``.

        Args:
            image: ``[B, 3, H, W]`` in [-1, 1], 16 pixels a side at least.
            target: The same shape.
        """
        distances: Tensor = self._network.to(image.device)(image.float(), target.float())
        return distances.mean()
