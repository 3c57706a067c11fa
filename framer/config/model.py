"""The transformer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from framer.config.base import ConfigSection
from framer.config.types import NonEmptyText, NonNegativeInt, PositiveFloat, PositiveInt


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


class ArchitectureConfig(ConfigSection):
    """A ``diffusers.SD3Transformer2DModel`` to be trained from random weights."""

    patch_size: PositiveInt = 4
    num_layers: Annotated[int, Field(ge=3)] = 8
    """Transformer blocks; FRAMER needs at least two students and a teacher."""
    num_attention_heads: PositiveInt = 4
    attention_head_dim: PositiveInt = 32
    """Channels of a head; times the heads a multiple of 4, for the two-dimensional sine and cosine positions."""
    joint_attention_dim: PositiveInt = 32
    """Channels of the text tokens."""
    pooled_projection_dim: PositiveInt = 32
    """Channels of the pooled text embedding."""
    pos_embed_max_size: Annotated[int, Field(ge=2)] = 32
    """Largest token grid, in tokens a side."""
    qk_norm: Literal["rms_norm"] | None = "rms_norm"
    dual_attention_layers: list[NonNegativeInt] = []
    """Blocks with a second, image-only attention, as in SD3.5-medium; counted from 0."""

    @model_validator(mode="after")
    def _model_can_be_built(self) -> ArchitectureConfig:
        width = self.num_attention_heads * self.attention_head_dim
        if width % 4:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} times attention_head_dim {self.attention_head_dim} "
                f"is {width}, not a multiple of 4"
            )
        absent = [block for block in self.dual_attention_layers if block >= self.num_layers]
        if absent:
            raise ValueError(
                f"dual_attention_layers {absent}: num_layers is {self.num_layers}, so blocks are 0 to "
                f"{self.num_layers - 1}"
            )
        return self


class ModelConfig(ConfigSection):
    """The transformer and what it diffuses."""

    pretrained: str | None = None
    """``base`` (the small model that ships with the package), a diffusers folder, or null: random weights."""
    architecture: ArchitectureConfig = ArchitectureConfig()
    """Read only where ``pretrained`` is null."""
    conditioning: Literal["concat"] = "concat"
    """How the low-resolution image enters: joined to the noisy input by channels."""
    text_tokens: PositiveInt = 1
    """Text tokens; all zeros as long as there are no captions."""
    trainable: Annotated[list[NonEmptyText], Field(min_length=1), BeforeValidator(_one_or_more)] = ["all"]
    """Parameters that train, one or more of: ``all``; ``attention``, those of the blocks' attention; ``control``, those
    through which the low-resolution image enters; shell patterns of names, such as ``transformer_blocks.*.ff.*``."""
    compile_blocks: bool = False
    """Compile each transformer block with ``torch.compile``; not in ZeRO stage 3."""
    latents: Literal["pixel", "residual"] = "residual"
    """What is diffused: ``pixel``, the image in [-1, 1]; ``residual``, the image minus the bicubic upscaling."""
    latents_scale: PositiveFloat = 6.0
    """Factor that brings the residual to about unit variance; ``pixel`` ignores it."""
