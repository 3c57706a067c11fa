"""Where image tokens lie in joint sequences that are more than text and image put together."""

from __future__ import annotations

import torch
from torch import Tensor

from framer.features.adapters.layouts import Arguments, TokenGrid, TokenPicker
from framer.features.errors import FeatureError


def after(name: str = "encoder_hidden_states") -> TokenPicker:
    """The tokens that follow those of an argument ``[B, T, ...]``; reference images may come after them."""

    def pick(tokens: Tensor, arguments: Arguments, grid: TokenGrid) -> Tensor:
        start: int = arguments[name].shape[1]
        return tokens[:, start : start + grid.tokens]

    return pick


def after_prompts(mask: str = "encoder_attention_mask") -> TokenPicker:
    """The tokens that follow as many as a sample's prompt has, by its mask ``[B, T]``; a copy."""

    def pick(tokens: Tensor, arguments: Arguments, grid: TokenGrid) -> Tensor:
        lengths = arguments[mask].sum(1).long()
        index = lengths[:, None] + torch.arange(grid.tokens, device=tokens.device)
        return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))

    return pick


def marked(name: str, mark: int) -> TokenPicker:
    """The tokens whose argument ``[B, L]`` is ``mark``; a copy."""

    def pick(tokens: Tensor, arguments: Arguments, grid: TokenGrid) -> Tensor:
        marks = arguments[name] == mark
        counts = marks.sum(1)
        if bool((counts != grid.tokens).any()):
            raise FeatureError(
                f"{name} marks {counts.tolist()} image tokens in the samples of the batch, but the first one's "
                f"coordinates are a grid of {grid}: put images of one size into a batch."
            )
        return tokens[marks].view(tokens.shape[0], -1, tokens.shape[2])

    return pick


def sequence_first(tokens: Tensor, arguments: Arguments, grid: TokenGrid) -> Tensor:
    """The first tokens of a sequence ``[L, B, D]``."""
    return tokens[: grid.tokens].transpose(0, 1)


def after_gist(tokens: Tensor, arguments: Arguments, grid: TokenGrid) -> Tensor:
    """The tokens between Bria FIBO 2's summary of the prompt and its reference images.

    Raises:
        FeatureError: The prompts differ in length, where the image may come before the summary.
    """
    mask: Tensor | None = arguments.get("encoder_attention_mask")
    if mask is not None:
        lengths = mask.sum(1)
        if bool((lengths != lengths[0]).any()):
            raise FeatureError(
                f"encoder_attention_mask has prompts of {lengths.tolist()} tokens. Bria FIBO 2 lays its tokens out in "
                "another order where prompts of different lengths meet in a batch: give it prompts of one length."
            )
    patch = arguments["hidden_states"].shape[-1] // grid.width
    references = arguments.get("context_latents") or ()
    behind = sum((latent.shape[-2] // patch) * (latent.shape[-1] // patch) for latent in references)
    end = tokens.shape[1] - behind
    return tokens[:, end - grid.tokens : end]
