"""Stable Diffusion 3 and 3.5 with the low-resolution stream."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

import torch
from diffusers import SD3Transformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from framer.errors import UserError
from framer.models.control_stream.attention import Variant
from framer.models.control_stream.block import ControlStreamTransformerBlock


class SD3ControlStreamTransformer2DModel(SD3Transformer2DModel):
    """SD3 whose blocks carry the low-resolution latent as a second image stream, as DiT4SR does.

    The low-resolution latent passes the same patch and position embedding as the noisy one, then the same blocks
    (``ControlStreamTransformerBlock``). Only the ``control_*`` parameters of the blocks are new and train.

    Where it equals SD3:

    * Without ``condition``, always: the frozen weights are SD3's.
    * With it, as long as the convolutions are zero, each feed-forward layer gives the noisy tokens what SD3's gives
      them, and the low-resolution tokens reach them and the text through attention alone: with their keys masked the
      output is SD3's.
    * With it and unmasked, it does not, not even at the start: control projections of zero leave the low-resolution
      tokens with SD3's own keys and values, and attention sees them. A gate that starts at zero would change that;
      the published weights have none, and none is added.

    Args:
        sample_size: As in ``SD3Transformer2DModel``, like all others but the last.
        patch_size: As there.
        in_channels: As there; also the channels of the low-resolution latent.
        num_layers: As there.
        attention_head_dim: As there.
        num_attention_heads: As there.
        joint_attention_dim: As there.
        caption_projection_dim: As there.
        pooled_projection_dim: As there.
        out_channels: As there.
        pos_embed_max_size: As there; sides of the token grid up to this fit.
        dual_attention_layers: As there.
        qk_norm: As there.
        variant: Whose keys the low-resolution tokens have: ``r1``, their own; ``v1``, those of the noisy tokens, an
            error of DiT4SR's first code that its first weights were trained with.

    Raises:
        UserError: There is no such variant.
    """

    _no_split_modules: ClassVar[list[str]] = ["ControlStreamTransformerBlock"]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 128,
        patch_size: int = 2,
        in_channels: int = 16,
        num_layers: int = 18,
        attention_head_dim: int = 64,
        num_attention_heads: int = 18,
        joint_attention_dim: int = 4096,
        caption_projection_dim: int = 1152,
        pooled_projection_dim: int = 2048,
        out_channels: int = 16,
        pos_embed_max_size: int = 96,
        dual_attention_layers: tuple[int, ...] = (),
        qk_norm: str | None = None,
        variant: Variant = "r1",
    ) -> None:
        if variant not in get_args(Variant):
            raise UserError(f"variant: got {variant!r}; expected one of {', '.join(get_args(Variant))}")
        super().__init__(
            sample_size=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            num_layers=num_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            caption_projection_dim=caption_projection_dim,
            pooled_projection_dim=pooled_projection_dim,
            out_channels=out_channels,
            pos_embed_max_size=pos_embed_max_size,
            dual_attention_layers=dual_attention_layers,
            qk_norm=qk_norm,
        )
        blocks = [ControlStreamTransformerBlock(block, variant) for block in self.get_submodule("transformer_blocks")]
        self.transformer_blocks = nn.ModuleList(blocks)

    @apply_lora_scale("joint_attention_kwargs")  # type: ignore[untyped-decorator]
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        block_controlnet_hidden_states: list[Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        skip_layers: list[int] | None = None,
        *,
        condition: Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predicts the velocity of the noisy latent.

        Args:
            hidden_states: Noisy latent, ``[B, C, H, W]``; H and W need not be equal.
            encoder_hidden_states: Text tokens, ``[B, T, joint_attention_dim]``.
            pooled_projections: Pooled text, ``[B, pooled_projection_dim]``.
            timestep: ``[B]`` in [0, 1000].
            block_controlnet_hidden_states: Residuals of a ControlNet for the noisy tokens, ``[B, h*w, D]`` each, spread
                over all blocks but the last.
            joint_attention_kwargs: ``scale`` of LoRA layers; nothing else.
            return_dict: Whether to return a ``Transformer2DModelOutput`` rather than a tuple.
            skip_layers: Indices of blocks to leave out.
            condition: Low-resolution latent, of the noisy latent's shape; None runs SD3 without the stream.

        Returns:
            The velocity ``[B, C, H, W]``.

        Raises:
            UserError: The latents do not fit each other, the patches or the position table, or there are other
                ``joint_attention_kwargs``.
        """
        if joint_attention_kwargs:
            raise UserError(
                f"joint_attention_kwargs: got {', '.join(joint_attention_kwargs)}; the low-resolution stream's "
                "attention takes none beside scale, LoRA's"
            )
        grid = self._checked_grid(hidden_states, condition)
        noisy = self.pos_embed(hidden_states).contiguous()
        low_resolution = None if condition is None else self.pos_embed(condition).contiguous()
        temb = self.time_text_embed(timestep, pooled_projections)
        text = self.context_embedder(encoder_hidden_states)

        checkpointed = torch.is_grad_enabled() and self.gradient_checkpointing
        for index, block in enumerate(self.transformer_blocks):
            if skip_layers is None or index not in skip_layers:
                if checkpointed:
                    text, noisy, low_resolution = self._gradient_checkpointing_func(
                        block, noisy, text, temb, low_resolution, grid
                    )
                else:
                    text, noisy, low_resolution = block(
                        hidden_states=noisy,
                        encoder_hidden_states=text,
                        temb=temb,
                        condition_hidden_states=low_resolution,
                        grid=grid,
                    )
            if block_controlnet_hidden_states is not None and not block.context_pre_only:
                blocks_a_residual = len(self.transformer_blocks) / len(block_controlnet_hidden_states)
                noisy = noisy + block_controlnet_hidden_states[int(index / blocks_a_residual)]

        velocity = self._unpatchify(self.proj_out(self.norm_out(noisy, temb)), grid)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def set_attn_processor(self, processor: object) -> None:
        """Refused: the low-resolution stream lives in the processors.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f"set_attn_processor: the low-resolution stream needs its own processors, not {type(processor).__name__}; "
            "choose how attention is computed with set_attention_backend"
        )

    def fuse_qkv_projections(self) -> None:
        """Refused, as :meth:`set_attn_processor`.

        Raises:
            UserError: Always.
        """
        raise UserError("fuse_qkv_projections: the low-resolution stream's attention does not run fused projections")

    def enable_forward_chunking(self, chunk_size: int | None = None, dim: int = 0) -> None:
        """Refused: the convolution in the feed-forward layers needs all tokens at once.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f"enable_forward_chunking(chunk_size={chunk_size}, dim={dim}): the convolution in the feed-forward layers "
            "needs all tokens at once"
        )

    def _checked_grid(self, sample: Tensor, condition: Tensor | None) -> tuple[int, int]:
        """Rows and columns of tokens."""
        patch, largest = int(self.config.patch_size), int(self.config.pos_embed_max_size)
        if condition is not None and condition.shape != sample.shape:
            raise UserError(
                f"condition has shape {list(condition.shape)}, but hidden_states {list(sample.shape)}; expected the "
                "low-resolution image's latent in the noisy latent's shape"
            )
        height, width = sample.shape[-2:]
        if height % patch or width % patch:
            raise UserError(f"hidden_states: {height} x {width} is not a multiple of the patch size {patch}")
        grid = height // patch, width // patch
        if max(grid) > largest:
            raise UserError(
                f"hidden_states: {height} x {width} makes {grid[0]} x {grid[1]} tokens, but the position table has "
                f"{largest} x {largest}; use tiles of up to {largest * patch} a side"
            )
        return grid

    def _unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        patch = int(self.config.patch_size)
        # [B, h*w, p*p*C] -> [B, h, w, p, p, C] -> [B, C, h, p, w, p]
        patches = patches.reshape(-1, *grid, patch, patch, self.out_channels).permute(0, 5, 1, 3, 2, 4)
        return patches.flatten(4, 5).flatten(2, 3)
