"""Architectures of models that start from random weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from framer.config.base import ConfigSection
from framer.config.explain import WRONG_TYPE
from framer.config.types import NonNegativeInt, PositiveInt


class SD3Architecture(ConfigSection):
    """A ``diffusers.SD3Transformer2DModel``."""

    type: Literal["sd3"] = "sd3"
    """Says that the keys are those of SD3."""
    patch_size: PositiveInt = 4
    """Height and width of the latent patch that becomes one token, in latent pixels."""
    num_layers: Annotated[int, Field(ge=3)] = 8
    """Transformer blocks; FRAMER needs at least two students and a teacher."""
    num_attention_heads: PositiveInt = 4
    """Heads of each attention; times ``attention_head_dim`` they are the width of the model."""
    attention_head_dim: PositiveInt = 32
    """Channels of a head; times the heads a multiple of 4, for the two-dimensional sine and cosine positions."""
    joint_attention_dim: PositiveInt = 32
    """Channels of the text tokens."""
    pooled_projection_dim: PositiveInt = 32
    """Channels of the pooled text embedding."""
    pos_embed_max_size: Annotated[int, Field(ge=2)] = 32
    """Largest token grid, in tokens a side."""
    qk_norm: Literal["rms_norm"] | None = "rms_norm"
    """Norm of queries and keys before they are compared, as in SD3.5; null: none, as in SD3."""
    dual_attention_layers: list[NonNegativeInt] = []
    """Blocks with a second, image-only attention, as in SD3.5-medium; counted from 0."""

    @model_validator(mode="after")
    def _model_can_be_built(self) -> SD3Architecture:
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


class UNetArchitecture(ConfigSection):
    """A ``diffusers.UNet2DConditionModel`` of the kind of Stable Diffusion 1.5, 2.1 and XL; by default a tiny one."""

    type: Literal["unet"] = "unet"
    """Says that the keys are those of a U-Net."""
    block_out_channels: Annotated[list[PositiveInt], Field(min_length=2)] = [32, 64, 64]
    """Channels of the stages, from the finest; each halves the size but the last."""
    cross_attention: list[bool] = [True, True, False]
    """Which stages attend to the text, on the way down; the same ones do on the way up."""
    layers_per_block: PositiveInt = 1
    """Residual blocks of each stage on the way down; on the way up, each stage has one more."""
    transformer_layers_per_block: list[PositiveInt] = [1, 1, 1]
    """Transformer blocks of each stage."""
    num_attention_heads: list[PositiveInt] = [2, 4, 4]
    """Heads of each stage; divisors of its channels."""
    cross_attention_dim: PositiveInt = 32
    """Channels of the text tokens."""
    use_linear_projection: bool = True
    """Whether transformers are entered by a linear layer, as in SD 2.1 and XL, instead of a convolution, as in 1.5."""
    norm_num_groups: PositiveInt = 16
    """Groups of the group norms; a divisor of every stage's channels."""
    pooled_projection_dim: PositiveInt | None = None
    """Channels of SDXL's pooled text embedding; null for a model without one and without sizes."""
    addition_time_embed_dim: PositiveInt = 8
    """Channels of the embedding of each of SDXL's six sizes."""

    @model_validator(mode="after")
    def _stages_fit(self) -> UNetArchitecture:
        stages = len(self.block_out_channels)
        for name in ("cross_attention", "transformer_layers_per_block", "num_attention_heads"):
            if len(getattr(self, name)) != stages:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries, but block_out_channels has {stages} stages"
                )
        for channels, heads in zip(self.block_out_channels, self.num_attention_heads, strict=True):
            if channels % heads:
                raise ValueError(f"num_attention_heads: {heads} heads do not divide the stage's {channels} channels")
            if channels % self.norm_num_groups:
                raise ValueError(f"norm_num_groups {self.norm_num_groups} does not divide {channels} channels")
        return self


def _type_of(value: Any) -> str:
    kind = value.get("type", "sd3") if isinstance(value, dict) else getattr(value, "type", "sd3")
    return str(kind)


Architecture = Annotated[
    Annotated[SD3Architecture, Tag("sd3")] | Annotated[UNetArchitecture, Tag("unet")],
    Discriminator(
        _type_of,
        custom_error_type=WRONG_TYPE,
        custom_error_message="should be one of sd3, unet",
    ),
]
