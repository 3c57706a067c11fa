"""The transformer and what it is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticKnownError

from framer.config.base import ConfigSection
from framer.config.types import NonEmptyText, NonNegativeInt, PositiveFloat, PositiveInt


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _no_number(value: object) -> object:
    """Refuses ``1`` and ``1.0`` where a Literal takes them, as ``1 == True``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise PydanticKnownError("literal_error", {"expected": "'gaussian' or true"})
    return value


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


class LoraConfig(ConfigSection):
    """Low-rank adapters (arXiv 2106.09685) beside frozen layers: they train in the place of the model's own weights."""

    rank: PositiveInt = 16
    alpha: PositiveFloat | None = None
    """An adapter's output is scaled by ``alpha / rank``; null: by 1."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of an adapter's input that is zeroed in training."""
    target_modules: Annotated[list[NonEmptyText], Field(min_length=1), BeforeValidator(_one_or_more)] | None = None
    """Linear layers, and convolutions without groups, that get an adapter: ends of names as peft takes them, such as
    ``to_q`` or ``ff.net.2``, or shell patterns of whole names, such as ``transformer_blocks.1?.attn.*``; null: all
    linear layers of the model's attention."""
    train_also: Annotated[list[NonEmptyText], BeforeValidator(_one_or_more)] = []
    """Parameters of the model itself that train too, as in ``model.trainable``: ``control``, ``pos_embed.proj.*``."""
    init: Annotated[Literal["gaussian", True], BeforeValidator(_no_number)] = "gaussian"
    """How the first factor is drawn, as peft names it: ``gaussian``; true: as torch draws a linear layer. The second
    one is zero, so that the model starts out computing what it computed before."""
    export: Literal["merged", "adapter"] = "merged"
    """What ``export/`` holds: ``merged``, the model with its adapters added into its weights; ``adapter``, the adapters
    by themselves too, in its folder ``lora``, as diffusers loads them."""


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
    lora: LoraConfig | None = None
    """Train adapters in the place of weights; null: train the weights that ``trainable`` selects."""
    attention_backend: NonEmptyText | None = None
    """What computes attention, as diffusers names it: ``native``, ``_native_math``, ``_native_flash``, ``flash``,
    ``xformers`` ...; null: diffusers' default. One that cannot be used is refused."""
    compile_blocks: bool = False
    """Compile each transformer block with ``torch.compile``; not in ZeRO stage 3."""
    latents: Literal["pixel", "residual"] = "residual"
    """What is diffused: ``pixel``, the image in [-1, 1]; ``residual``, the image minus the bicubic upscaling."""
    latents_scale: PositiveFloat = 6.0
    """Factor that brings the residual to about unit variance; ``pixel`` ignores it."""

    @model_validator(mode="after")
    def _lora_says_what_trains(self) -> ModelConfig:
        if self.lora is not None and self.trainable != ["all"]:
            raise ValueError(
                f"trainable {self.trainable} has no effect with lora, which trains its adapters and lora.train_also "
                "alone; leave it out, and name the parameters that train beside the adapters in lora.train_also"
            )
        return self


class ObjectiveConfig(ConfigSection):
    """Flow matching as Stable Diffusion 3 trains it (arXiv 2403.03206)."""

    prediction_type: Literal["velocity", "sample"] = "velocity"
    """What the model's output is: ``velocity``, noise minus clean sample, as SD3; ``sample``, the clean sample."""
    target: Literal["velocity", "x0"] = "velocity"
    """Where the squared error is measured: on the ``velocity``, or on the clean sample ``x0``."""
    logit_mean: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Mean of logit(sigma) before the shift."""
    logit_std: PositiveFloat = 1.0
    """Standard deviation of logit(sigma)."""
    timestep_shift: PositiveFloat = 3.0
    """SD3's resolution shift s: sigma -> s * sigma / (1 + (s - 1) * sigma), in training and inference."""
