"""The low-resolution image as a condition: joined to the noisy input by channels."""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from framer.errors import UserError


def expand_input_channels(model: SD3Transformer2DModel, in_channels: int) -> None:
    """Widens the patch embedding to ``in_channels``; the new channels' weights are zero.

    The widened model computes what it computed before, whatever the new channels hold.

    Args:
        model: Changed in place, its config too.
        in_channels: New number of input channels, at least the present one.

    Raises:
        UserError: The model has more input channels already.
    """
    present = int(model.config.in_channels)
    if in_channels < present:
        raise UserError(f"the model takes {present} input channels, more than the {in_channels} that it would be given")
    if in_channels == present:
        return
    narrow = model.pos_embed.proj
    wide = nn.Conv2d(
        in_channels,
        narrow.out_channels,
        kernel_size=narrow.kernel_size,
        stride=narrow.stride,
        bias=narrow.bias is not None,
        device="meta",  # draws no random numbers
        dtype=narrow.weight.dtype,
    ).to_empty(device=narrow.weight.device)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, :present] = narrow.weight
        if narrow.bias is not None and wide.bias is not None:
            wide.bias.copy_(narrow.bias)
    model.pos_embed.proj = wide
    model.register_to_config(in_channels=in_channels)


def model_inputs(
    model: SD3Transformer2DModel, sample: Tensor, condition: Tensor, timesteps: Tensor, *, text_tokens: int = 1
) -> dict[str, Tensor]:
    """Keyword arguments of ``SD3Transformer2DModel.forward`` for an image without a caption.

    Args:
        model: Tells the sizes of the text embeddings.
        sample: Noisy latents, ``[B, C, H, W]``.
        condition: The low-resolution image at the same size, ``[B, C', H, W]``, see ``LatentSpace.condition``.
        timesteps: ``[B]`` float32 in [0, 1000].
        text_tokens: Number of text tokens, zeros.
    """
    batch = sample.shape[0]
    config = model.config
    return {
        "hidden_states": torch.cat([sample, condition], dim=1),
        "encoder_hidden_states": sample.new_zeros(batch, text_tokens, config.joint_attention_dim),
        "pooled_projections": sample.new_zeros(batch, config.pooled_projection_dim),
        "timestep": timesteps,
    }
