"""The U-Nets of Stable Diffusion 1.5, 2.1 and XL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from framer.config.architecture import UNetArchitecture
from framer.config.model import ModelConfig
from framer.errors import ConfigError
from framer.models.backbones.base import Backbone, InputChannels
from framer.models.text import TextEmbeddings, TextSizes

if TYPE_CHECKING:
    from diffusers import ModelMixin

TIME_IDS = 6
"""SDXL's sizes: original height and width, crop's top and left, target height and width."""


class UNetBackbone(Backbone):
    """diffusers' ``UNet2DConditionModel``, the low-resolution image joined to the latents by channels."""

    class_name = "UNet2DConditionModel"
    input_projection = "conv_in"
    attention_parameters: ClassVar[tuple[str, ...]] = ("*.attn1.*", "*.attn2.*")
    control_parameters: ClassVar[tuple[str, ...]] = ("conv_in.*",)

    @property
    def model_class(self) -> type[ModelMixin]:
        """The class itself."""
        from diffusers import UNet2DConditionModel

        cls: type[ModelMixin] = UNet2DConditionModel
        return cls

    def settings(self, config: ModelConfig, channels: InputChannels) -> Mapping[str, Any]:
        """Arguments of the class for ``model.architecture``."""
        architecture = config.architecture
        assert isinstance(architecture, UNetArchitecture)
        attends = architecture.cross_attention
        settings: dict[str, Any] = {
            "in_channels": channels.latents + (channels.condition if self.condition_joins_input else 0),
            "out_channels": channels.latents,
            "block_out_channels": tuple(architecture.block_out_channels),
            "layers_per_block": architecture.layers_per_block,
            "down_block_types": tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends),
            "up_block_types": tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
            "transformer_layers_per_block": tuple(architecture.transformer_layers_per_block),
            "attention_head_dim": tuple(architecture.num_attention_heads),
            "cross_attention_dim": architecture.cross_attention_dim,
            "use_linear_projection": architecture.use_linear_projection,
            "norm_num_groups": architecture.norm_num_groups,
        }
        if architecture.pooled_projection_dim is not None:
            settings |= {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": architecture.addition_time_embed_dim,
                "projection_class_embeddings_input_dim": architecture.pooled_projection_dim
                + TIME_IDS * architecture.addition_time_embed_dim,
            }
        return settings

    def check_model(self, model: ModelMixin) -> None:
        """Refuses U-Nets with class labels, image embeddings or text of several widths.

        Raises:
            ConfigError: The model is one of them.
        """
        found = {key: model.config[key] for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")}
        unfit = {key: value for key, value in found.items() if value is not None}
        if model.config.addition_embed_type not in (None, "text_time"):
            unfit["addition_embed_type"] = model.config.addition_embed_type
        if not isinstance(model.config.cross_attention_dim, int):
            unfit["cross_attention_dim"] = model.config.cross_attention_dim
        if unfit:
            shown = ", ".join(f"{key} {value}" for key, value in unfit.items())
            raise ConfigError(
                f"model.pretrained: U-Nets with {shown} cannot be trained here; expected "
                "those of Stable Diffusion 1.5, 2.1 or XL"
            )

    def multiple(self, model: ModelMixin) -> int:
        """Every stage but the last halves the size."""
        return int(2 ** (len(model.config.block_out_channels) - 1))

    def largest_side(self, model: ModelMixin) -> None:
        """There is no limit."""
        return

    def feature_size(self, model: ModelMixin, height: int, width: int) -> tuple[int, int]:
        """The teacher is the last map, as large as the latents."""
        return height, width

    def text_sizes(self, model: ModelMixin) -> TextSizes:
        """Of the cross-attention, and of SDXL's pooled text."""
        config, pooled = model.config, None
        if config.addition_embed_type == "text_time":
            pooled = int(config.projection_class_embeddings_input_dim) - TIME_IDS * int(config.addition_time_embed_dim)
        return TextSizes(int(config.cross_attention_dim), pooled)

    def inputs(
        self,
        model: ModelMixin,
        sample: Tensor,
        condition: Tensor,
        timesteps: Tensor,
        text: TextEmbeddings,
        *,
        image_size: tuple[int, int],
    ) -> dict[str, Any]:
        """Keyword arguments of ``UNet2DConditionModel.forward``; SDXL's sizes are those of the image, uncropped."""
        inputs: dict[str, Any] = {
            "sample": torch.cat([sample, condition], dim=1) if self.condition_joins_input else sample,
            "timestep": timesteps,
            "encoder_hidden_states": text.prompt,
        }
        if text.pooled is not None:
            time_ids = sample.new_tensor([*image_size, 0, 0, *image_size]).expand(len(sample), -1)
            inputs["added_cond_kwargs"] = {"text_embeds": text.pooled, "time_ids": time_ids}
        return inputs


class UnconditionedUNetBackbone(UNetBackbone):
    """The same without a condition: what it is given as latents is the low-resolution image itself."""

    condition_joins_input = False
    control_parameters = ()
