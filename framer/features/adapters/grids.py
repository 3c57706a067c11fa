"""Rules that tell the grid of image tokens from the arguments of a model's forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from framer.features.adapters.layouts import Arguments, GridRule, TokenGrid


def patchified(argument: str = "hidden_states", *, patch: str = "patch_size") -> GridRule:
    """One token a patch of a latent ``[B, C, H, W]``.

    A remainder smaller than a patch is cut off, as patch embeddings do.

    Args:
        argument: Name of the latent among the forward's arguments.
        patch: The patch's side in the model's config.
    """

    def grid(model: Any, arguments: Arguments) -> TokenGrid:
        sample: Tensor = arguments[argument]
        side = int(model.config[patch])
        return TokenGrid(1, sample.shape[-2] // side, sample.shape[-1] // side)

    return grid


def patch_side(model: nn.Module) -> int:
    """Side of a patch, in latent pixels."""
    config: Any = model.config
    return int(config["patch_size"])
