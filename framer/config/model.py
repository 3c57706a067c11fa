"""The model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from framer.config.architecture import Architecture, SD3Architecture
from framer.config.base import ConfigSection
from framer.config.lora import LoraConfig
from framer.config.types import NonEmptyText, PositiveFloat, PositiveInt, one_or_more


class ModelConfig(ConfigSection):
    """The model and what it diffuses."""

    pretrained: str | None = None
    """``base`` (the small model that ships with the package), a diffusers folder, or null: random weights."""
    architecture: Architecture = SD3Architecture()
    """Read only where ``pretrained`` is null."""
    conditioning: Literal["concat", "control_stream", "controlnet", "none"] = "concat"
    """How the low-resolution image enters: ``concat``, joined to the noisy input by channels; ``control_stream``, as a
    second stream of image tokens (SD3 alone); ``controlnet``, through a diffusers ControlNet, which trains beside the
    frozen model of ``pretrained`` (``trainable`` ``control``); ``none``, not beside the input, for ``objective.type``
    ``one_step``, where it is the input (U-Nets alone)."""
    controlnet: str | None = None
    """The folder of a diffusers ControlNet to go on from, for ``conditioning`` ``controlnet``; null: a new one, whose
    blocks start as the model's."""
    control_variant: Literal["r1", "v1"] = "r1"
    """Whose keys the low-resolution tokens of ``control_stream`` have: their own, or, as DiT4SR's first weights were
    trained, those of the noisy tokens."""
    text_embeddings: str | None = None
    """A safetensors file with ``prompt_embeds`` ``[T, D]`` and, where the model takes one, ``pooled_prompt_embeds``
    ``[P]``, seen with every image, such as those of the empty text; null: ``text_tokens`` zeros."""
    negative_text_embeddings: str | None = None
    """Another such file, of the empty or a negative text, for score distillation (``objective.csd_weight``); null: as
    many zeros."""
    text_tokens: PositiveInt = 1
    """Text tokens of zeros; not read where ``text_embeddings`` is given."""
    trainable: Annotated[list[NonEmptyText], Field(min_length=1), BeforeValidator(one_or_more)] = ["all"]
    """Parameters that train, one or more of: ``all``; ``attention``, those of the blocks' attention; ``control``, those
    through which the low-resolution image enters; shell patterns of names, such as ``transformer_blocks.*.ff.*``."""
    lora: LoraConfig | None = None
    """Train adapters in the place of weights; null: train the weights that ``trainable`` selects."""
    attention_backend: NonEmptyText | None = None
    """What computes attention, as diffusers names it: ``native``, ``_native_math``, ``_native_flash``, ``flash``,
    ``xformers`` ...; null: diffusers' default. One that cannot be used is refused."""
    compile_blocks: bool = False
    """Compile each block with ``torch.compile``; not in ZeRO stage 3."""
    latents: Literal["pixel", "residual", "vae"] = "residual"
    """What is diffused: ``pixel``, the image in [-1, 1]; ``residual``, the image minus the bicubic upscaling; ``vae``,
    the latents of an autoencoder."""
    latents_scale: PositiveFloat = 6.0
    """Factor that brings the residual to about unit variance; the others ignore it."""
    vae: str | None = None
    """The folder of a diffusers ``AutoencoderKL``, for ``latents: vae``; it stays frozen."""
    vae_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the autoencoder."""

    @model_validator(mode="after")
    def _variant_is_of_the_stream(self) -> ModelConfig:
        if self.control_variant != "r1" and self.conditioning != "control_stream":
            raise ValueError(
                f"control_variant {self.control_variant} has no effect with conditioning {self.conditioning}; leave it "
                "out, or set conditioning to control_stream"
            )
        return self

    @model_validator(mode="after")
    def _autoencoder_is_named(self) -> ModelConfig:
        if self.latents == "vae" and self.vae is None:
            raise ValueError("latents is vae, but vae, the autoencoder's folder, is not given")
        if self.latents != "vae" and self.vae is not None:
            raise ValueError(f"vae is given, but latents is {self.latents}; set latents to vae to use it")
        return self

    @model_validator(mode="after")
    def _controlnet_has_a_model(self) -> ModelConfig:
        if self.conditioning != "controlnet":
            if self.controlnet is not None:
                raise ValueError(
                    f"controlnet is given, but conditioning is {self.conditioning}; set conditioning to controlnet"
                )
            return self
        if self.pretrained is None:
            raise ValueError(
                "conditioning is controlnet, which trains beside a frozen model, but pretrained, that model's folder, "
                "is not given"
            )
        if self.lora is not None:
            raise ValueError("conditioning controlnet with lora: a ControlNet's own weights train; leave lora out")
        return self

    @model_validator(mode="after")
    def _lora_says_what_trains(self) -> ModelConfig:
        if self.lora is not None and self.trainable != ["all"]:
            raise ValueError(
                f"trainable {self.trainable} has no effect with lora, which trains its adapters and lora.train_also "
                "alone; leave it out, and name the parameters that train beside the adapters in lora.train_also"
            )
        return self
