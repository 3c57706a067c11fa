"""The low-resolution image as a condition: joined to the noisy input by channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from framer.errors import UserError

if TYPE_CHECKING:
    from diffusers import ModelMixin


def expand_input_channels(model: ModelMixin, projection: str, in_channels: int) -> None:
    """Widens the convolution that the input enters through to ``in_channels``; the new channels' weights are zero.

    The widened model computes what it computed before, whatever the new channels hold.

    Args:
        model: Changed in place, its config too.
        projection: The convolution's name, such as ``pos_embed.proj``.
        in_channels: New number of input channels, at least the present one.

    Raises:
        UserError: The model has more input channels already.
    """
    present = int(model.config.in_channels)
    if in_channels < present:
        raise UserError(f"the model takes {present} input channels, more than the {in_channels} that it would be given")
    if in_channels == present:
        return
    narrow = model.get_submodule(projection)
    wide = nn.Conv2d(
        in_channels,
        narrow.out_channels,
        kernel_size=narrow.kernel_size,
        stride=narrow.stride,
        padding=narrow.padding,
        bias=narrow.bias is not None,
        device="meta",  # draws no random numbers
        dtype=narrow.weight.dtype,
    ).to_empty(device=narrow.weight.device)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, :present] = narrow.weight
        if narrow.bias is not None and wide.bias is not None:
            wide.bias.copy_(narrow.bias)
    model.set_submodule(projection, wide)
    model.register_to_config(in_channels=in_channels)
