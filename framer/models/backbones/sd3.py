"""Stable Diffusion 3 and 3.5, the low-resolution image joined to the latents by channels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from framer.config.architecture import SD3Architecture
from framer.config.model import ModelConfig
from framer.models.backbones.base import Backbone, InputChannels
from framer.models.text import TextEmbeddings, TextSizes

if TYPE_CHECKING:
    from diffusers import ModelMixin

_MODULATIONS = re.compile(r"(^norm_out\.linear|^proj_out|\.norm1\.linear|\.norm1_context\.linear)$")


class SD3Backbone(Backbone):
    """diffusers' ``SD3Transformer2DModel``."""

    class_name = "SD3Transformer2DModel"
    input_projection = "pos_embed.proj"
    drawn_by_name = False  # models were published before weights were drawn by name
    attention_parameters: ClassVar[tuple[str, ...]] = ("transformer_blocks.*.attn.*", "transformer_blocks.*.attn2.*")
    control_parameters = ("pos_embed.proj.*",)

    @property
    def model_class(self) -> type[ModelMixin]:
        """The class itself."""
        from diffusers import SD3Transformer2DModel

        cls: type[ModelMixin] = SD3Transformer2DModel
        return cls

    def settings(self, config: ModelConfig, channels: InputChannels) -> Mapping[str, Any]:
        """Arguments of the class for ``model.architecture``."""
        architecture = config.architecture
        assert isinstance(architecture, SD3Architecture)
        width = architecture.num_attention_heads * architecture.attention_head_dim
        return {
            "sample_size": architecture.patch_size * architecture.pos_embed_max_size // 2,
            "patch_size": architecture.patch_size,
            "in_channels": channels.latents + (channels.condition if self.condition_joins_input else 0),
            "out_channels": channels.latents,
            "num_layers": architecture.num_layers,
            "num_attention_heads": architecture.num_attention_heads,
            "attention_head_dim": architecture.attention_head_dim,
            "joint_attention_dim": architecture.joint_attention_dim,
            "caption_projection_dim": width,
            "pooled_projection_dim": architecture.pooled_projection_dim,
            "pos_embed_max_size": architecture.pos_embed_max_size,
            "qk_norm": architecture.qk_norm,
            "dual_attention_layers": tuple(architecture.dual_attention_layers),
        }

    # DiT's start (arXiv 2212.09748), which diffusers leaves out: adaLN-Zero, and patches embedded as by a linear layer.
    @torch.no_grad()
    def start_module(self, name: str, module: nn.Module) -> None:
        """adaLN-Zero: modulations and the output projection start at zero."""
        if isinstance(module, nn.Linear) and _MODULATIONS.search(name):
            module.weight.zero_()
            module.bias.zero_()

    @torch.no_grad()
    def start_model(self, model: ModelMixin) -> None:
        """Patches are embedded as by a linear layer with Xavier's weights."""
        projection = model.get_submodule(self.input_projection)
        nn.init.xavier_uniform_(projection.weight.flatten(1))
        projection.bias.zero_()

    def multiple(self, model: ModelMixin) -> int:
        """The patch size."""
        return int(model.config.patch_size)

    def largest_side(self, model: ModelMixin) -> int:
        """The table of positions, in latent pixels."""
        return int(model.config.patch_size) * int(model.config.pos_embed_max_size)

    def feature_size(self, model: ModelMixin, height: int, width: int) -> tuple[int, int]:
        """One token a patch."""
        patch = self.multiple(model)
        return height // patch, width // patch

    def text_sizes(self, model: ModelMixin) -> TextSizes:
        """Of the joint attention and of the pooled projection."""
        return TextSizes(int(model.config.joint_attention_dim), int(model.config.pooled_projection_dim))

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
        """Keyword arguments of the forward, which takes ``condition`` by itself where it does not join the latents."""
        entering: dict[str, Any] = (
            {"hidden_states": torch.cat([sample, condition], dim=1)}
            if self.condition_joins_input
            else {"hidden_states": sample, "condition": condition}
        )
        return {
            **entering,
            "encoder_hidden_states": text.prompt,
            "pooled_projections": text.pooled,
            "timestep": timesteps,
        }
