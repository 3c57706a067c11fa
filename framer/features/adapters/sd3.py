"""Stable Diffusion 3 and 3.5: diffusers' ``SD3Transformer2DModel`` of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from framer.features.adapters.base import Adapter


class SD3Adapter(Adapter):
    """Joint text-image blocks that return ``(text tokens, image tokens)``; the prediction is a velocity."""

    block_arguments: ClassVar[tuple[str, ...]] = (
        "hidden_states",
        "encoder_hidden_states",
        "temb",
        "joint_attention_kwargs",
    )
    conditioning_argument = "temb"

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The joint transformer blocks, with single or dual attention alike."""
        return tuple(self.model.transformer_blocks)

    def image_tokens(self, block_output: Any) -> Tensor:
        """The second element; the first is the text stream, which the last block drops."""
        tokens: Tensor = block_output[1]
        return tokens

    def token_grid(self, sample: Tensor) -> tuple[int, int]:
        """One token a patch; a remainder smaller than a patch is cut off, as the patch embedding does."""
        patch = int(self.model.config.patch_size)
        return sample.shape[-2] // patch, sample.shape[-1] // patch

    def predict(self, tokens: Tensor, conditioning: Tensor, grid: tuple[int, int]) -> Tensor:
        """The velocity ``unpatchify(proj_out(norm_out(tokens, conditioning)))``, ``[B, C, H, W]``."""
        patch = int(self.model.config.patch_size)
        patches: Tensor = self.model.proj_out(self.model.norm_out(tokens, conditioning))
        # [B, h*w, p*p*C] -> [B, h, w, p, p, C] -> [B, C, h, p, w, p]
        patches = patches.reshape(-1, *grid, patch, patch, self.model.out_channels).permute(0, 5, 1, 3, 2, 4)
        return patches.flatten(4, 5).flatten(2, 3)
