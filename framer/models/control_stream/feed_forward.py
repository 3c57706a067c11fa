"""The feed-forward layer of both image streams, with a convolution from one to the other between its linears."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.models.attention import FeedForward
from torch import Tensor, nn


def feed_forward(
    layers: FeedForward,
    convolution: nn.Conv2d,
    images: Sequence[Tensor],
    grid: tuple[int, int],
    *,
    condition_ends: bool,
) -> list[Tensor]:
    """Runs the image streams through the same layers, and adds the one's activations to the other's on the way.

    Args:
        layers: A linear with its activation, then the rest.
        convolution: What the low-resolution activations pass before they are added to the noisy ones.
        images: Noisy tokens and, where that stream is, low-resolution tokens, ``[B, h*w, D]`` each.
        grid: Rows and columns of tokens ``(h, w)``.
        condition_ends: Whether nothing reads the low-resolution tokens afterwards; they are left out of what is given
            back.

    Returns:
        The streams, ``[B, h*w, D]`` each.
    """
    activate, *rest = layers.net
    noisy, *condition = (activate(tokens) for tokens in images)
    for tokens in condition:
        noisy = noisy + _convolved(convolution, tokens, grid)
    outputs = [noisy] if condition_ends else [noisy, *condition]
    for layer in rest:
        outputs = [layer(tokens) for tokens in outputs]
    return outputs


def _convolved(convolution: nn.Conv2d, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens ``[B, h*w, C]`` convolved as the map that they are; in memory it has the channels last."""
    batch, _, channels = tokens.shape
    convolved: Tensor = convolution(tokens.transpose(1, 2).reshape(batch, channels, *grid))
    return convolved.flatten(2).transpose(1, 2)
