"""A frozen diffusers model with a ControlNet beside it, through which the low-resolution image enters.

The model itself lies under the name ``module``, where an adapter finds it as within any wrapper. Its features depend on
the ControlNet from the first residual on.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Final, Self

import torch
from diffusers import ControlNetModel, ModelMixin, SD3ControlNetModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from framer.models.modulewise import draw
from framer.seeding import derived_seed

CONTROLNET: Final = "controlnet"
"""Attribute that holds the ControlNet, and the entry of the config that holds its config."""


class ControlledModel(nn.Module):
    """Runs the ControlNet, then the model with its residuals.

    Args:
        module: The model.
        controlnet: The ControlNet.
    """

    base_class: ClassVar[type[ModelMixin]]
    """Class of the model."""

    controlnet_class: ClassVar[type[ModelMixin]]
    """Class of the ControlNet."""

    zero_modules: ClassVar[tuple[str, ...]]
    """Patterns of the ControlNet's modules that start at zero, so that it changes nothing at first."""

    def __init__(self, module: ModelMixin, controlnet: ModelMixin) -> None:
        super().__init__()
        # Typed Any: diffusers carries no types.
        self.module: Any = module
        self.controlnet: Any = controlnet

    @classmethod
    def from_config(cls, settings: Mapping[str, Any]) -> Self:
        """Both with new weights.

        Args:
            settings: The model's config, and under ``controlnet`` the ControlNet's.
        """
        base = {name: value for name, value in settings.items() if name != CONTROLNET}
        return cls(cls.base_class.from_config(base), cls.controlnet_class.from_config(settings[CONTROLNET]))

    @property
    def config(self) -> FrozenDict:
        """The model's config, and under ``controlnet`` the ControlNet's."""
        return FrozenDict({**self.module.config, CONTROLNET: _public(self.controlnet.config)})

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        dtype: torch.dtype = self.controlnet.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        device: torch.device = self.controlnet.device
        return device

    @property
    def control_blocks(self) -> dict[str, nn.Module]:
        """The ControlNet's blocks, by their names within it."""
        names = ("transformer_blocks", "down_blocks", "mid_block")
        stacks = {name: module for name, module in self.controlnet.named_children() if name in names}
        return {
            at: block
            for name, stack in stacks.items()
            for at, block in (
                [(f"{name}.{index}", block) for index, block in enumerate(stack)]
                if isinstance(stack, nn.ModuleList)
                else [(name, stack)]
            )
        }

    @classmethod
    def new_controlnet(cls, config: Mapping[str, Any], **own: Any) -> dict[str, Any]:
        """Config of a ControlNet whose blocks are like the model's.

        Args:
            config: The model's, complete.
            own: What is the ControlNet's own.
        """
        known = inspect.signature(cls.controlnet_class.__init__).parameters
        return {**{name: value for name, value in _public(config).items() if name in known}, **own}


def start_from_base(model: ControlledModel, *, seed: int) -> None:
    """Gives a new ControlNet the weights of the model that it has too; the others start as :func:`start_added` says.

    Args:
        model: Changed in place.
        seed: Of the others.
    """
    base, controlnet = model.module.state_dict(), model.controlnet
    own = controlnet.state_dict().keys()
    controlnet.load_state_dict({name: value for name, value in base.items() if name in own}, strict=False)
    for name, module in controlnet.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        if parameters and not any(f"{name}.{key}" in base for key in parameters):
            start_added(type(model), name, module, seed=seed)


@torch.no_grad()
def start_added(cls: type[ControlledModel], name: str, module: nn.Module, *, seed: int) -> None:
    """Gives a module that only the ControlNet has its first weights, which depend on the seed and its name alone.

    Args:
        cls: Says which are zero.
        name: The module's, within the ControlNet.
        module: Changed in place.
        seed: Of random weights; torch's global generator is set by it.
    """
    if any(fnmatchcase(name, pattern) for pattern in cls.zero_modules):
        for parameter in module.parameters(recurse=False):
            parameter.zero_()
    else:
        torch.manual_seed(derived_seed(seed, "weights", CONTROLNET, name))
        draw(module)


class ControlledSD3Transformer2DModel(ControlledModel):
    """``SD3Transformer2DModel`` with ``SD3ControlNetModel``."""

    base_class = SD3Transformer2DModel
    controlnet_class = SD3ControlNetModel
    zero_modules = ("controlnet_blocks.*", "pos_embed_input.proj")

    def forward(
        self,
        hidden_states: Tensor,
        condition: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
    ) -> Any:
        """What the transformer gives.

        Args:
            hidden_states: Noisy latents, ``[B, C, H, W]``.
            condition: The low-resolution image's latents, ``[B, C, H, W]``.
            encoder_hidden_states: Of the text, ``[B, T, D]``.
            pooled_projections: Of the text, ``[B, P]``.
            timestep: ``[B]``.
        """
        shared = {
            "hidden_states": hidden_states,
            "encoder_hidden_states": encoder_hidden_states,
            "pooled_projections": pooled_projections,
            "timestep": timestep,
        }
        residuals = self.controlnet(**shared, controlnet_cond=condition).controlnet_block_samples
        return self.module(**shared, block_controlnet_hidden_states=residuals)


class ControlledUNet2DConditionModel(ControlledModel):
    """``UNet2DConditionModel`` with ``ControlNetModel``."""

    base_class = UNet2DConditionModel
    controlnet_class = ControlNetModel
    zero_modules = ("controlnet_down_blocks.*", "controlnet_mid_block", "controlnet_cond_embedding.conv_out")

    def forward(
        self,
        sample: Tensor,
        condition: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Any:
        """What the U-Net gives.

        Args:
            sample: Noisy latents, ``[B, C, H, W]``.
            condition: The low-resolution image in [0, 1], upscaled, ``[B, 3, d*H, d*W]``, where a latent pixel has d
                pixels a side.
            timestep: ``[B]``.
            encoder_hidden_states: Of the text, ``[B, T, D]``.
            added_cond_kwargs: SDXL's pooled text and sizes.
        """
        shared = {
            "sample": sample,
            "timestep": timestep,
            "encoder_hidden_states": encoder_hidden_states,
            "added_cond_kwargs": added_cond_kwargs,
        }
        residuals = self.controlnet(**shared, controlnet_cond=condition)
        return self.module(
            **shared,
            down_block_additional_residuals=residuals.down_block_res_samples,
            mid_block_additional_residual=residuals.mid_block_res_sample,
        )


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without diffusers' notes of class, version and folder."""
    return {name: value for name, value in config.items() if not name.startswith("_")}
