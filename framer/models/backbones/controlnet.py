"""Frozen models with diffusers' ControlNet, which alone trains and is exported."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import Tensor, nn

from framer.config.model import ModelConfig
from framer.errors import ConfigError, UserError
from framer.models.backbones.base import Backbone, InputChannels
from framer.models.backbones.sd3 import SD3Backbone
from framer.models.backbones.unet import UNetBackbone
from framer.models.folders import read_model_config
from framer.models.latents import LatentSpace, latent_shape
from framer.models.pixel_condition import PixelCondition, unfolded
from framer.models.text import TextEmbeddings
from framer.models.weights import RenamedWeights, WeightReader, load_pretrained, open_weights

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from framer.models.controlled import ControlledModel

_KEY: Final = "model.controlnet"
_BASE: Final = "module."
_CONTROLNET: Final = "controlnet."
_EMBEDDING_CHANNELS: Final = (16, 32, 96, 256)
"""Of diffusers' embedding of the image; every step but the first halves its size."""


class ControlNetBackbone(Backbone):
    """What models with a ControlNet have in common."""

    condition_joins_input = False
    trained_part = "controlnet"

    base_name: ClassVar[str]
    """Name of the frozen model's class."""

    shared_settings: ClassVar[tuple[str, ...]]
    """What the configs of the frozen model and of its ControlNet must agree on."""

    @property
    @abstractmethod
    def model_class(self) -> type[ControlledModel]:
        """The class itself."""

    @property
    def starts_from(self) -> tuple[str, ...]:
        """The frozen model's class."""
        return (self.base_name,)

    @property
    def exported_class(self) -> str:
        """The ControlNet's."""
        return self.model_class.controlnet_class.__name__

    def settings(self, config: ModelConfig, channels: InputChannels) -> Mapping[str, Any]:
        """There are none: a model with random weights would stay as it is.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "model.conditioning=controlnet trains a ControlNet beside a frozen model; set model.pretrained to that "
            "model's diffusers folder"
        )

    def folder_settings(self, settings: Mapping[str, Any], config: ModelConfig) -> Mapping[str, Any]:
        """With those of the ControlNet.

        Raises:
            ConfigError: The given ControlNet is not one for this model, or none can be made for it.
            UserError: The given folder holds no ControlNet of the family, or one that cannot be made.
        """
        cls = self.model_class
        with torch.device("meta"):
            base = cls.base_class.from_config(settings).config
        if config.controlnet is None:
            return {**settings, "controlnet": cls.new_controlnet(base, **self.own_settings(base, config))}
        folder = Path(config.controlnet).expanduser()
        own = read_model_config(folder, key=_KEY)
        if own.get("_class_name") != self.exported_class:
            raise UserError(f"{_KEY}: {folder} holds {own.get('_class_name')}; expected {self.exported_class}")
        try:
            with torch.device("meta"):
                complete = cls.controlnet_class.from_config(own).config
        except Exception as error:  # whatever wrong settings make a model raise
            raise UserError(f"{_KEY}: cannot make the ControlNet of {folder}: {error}") from error
        for name in self.shared_settings:
            if _listed(complete[name]) != _listed(base[name]):
                raise ConfigError(
                    f"{_KEY}: the ControlNet in {folder} has {name} {complete[name]}, but model.pretrained has "
                    f"{base[name]}; expected one for this model"
                )
        self.check_controlnet(complete, config, folder)
        return {**settings, "controlnet": own}

    @abstractmethod
    def own_settings(self, base: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
        """Settings of a new ControlNet that are not the frozen model's.

        Args:
            base: The frozen model's config, complete.
            config: Names the latents.

        Raises:
            ConfigError: No ControlNet fits the model or its latents.
        """

    @abstractmethod
    def check_controlnet(self, settings: Mapping[str, Any], config: ModelConfig, folder: Path) -> None:
        """Checks that a folder's ControlNet can be trained here.

        Args:
            settings: Its config, complete.
            config: Names the latents.
            folder: For messages.

        Raises:
            ConfigError: It needs another condition than it would be given.
        """

    def adopt(self, model: ModelMixin, config: ModelConfig, *, seed: int) -> nn.Module:
        """Puts a ControlNet beside the model: that of ``model.controlnet``, or a new one with the model's weights."""
        from framer.models.controlled import start_from_base

        cls = self.model_class
        settings = self.folder_settings(model.config, config)["controlnet"]
        if config.controlnet is not None:
            folder = Path(config.controlnet).expanduser()
            return cls(model, load_pretrained(cls.controlnet_class, folder, key=_KEY))
        controlled = cls(model, cls.controlnet_class.from_config(settings))
        start_from_base(controlled, seed=seed)
        return controlled

    @contextmanager
    def open_weights(self, folder: Path, config: ModelConfig) -> Iterator[WeightReader]:
        """The frozen model's weights and the ControlNet's; those of a new one are the model's where it has them."""
        with open_weights(folder) as base:
            names = {f"{_BASE}{name}": (base, name) for name in base.names}
            if config.controlnet is None:
                own = self._controlnet_names(folder, config)
                names |= {f"{_CONTROLNET}{name}": (base, name) for name in base.names & own}
                yield RenamedWeights(names)
            else:
                with open_weights(Path(config.controlnet).expanduser(), key=_KEY) as controlnet:
                    names |= {f"{_CONTROLNET}{name}": (controlnet, name) for name in controlnet.names}
                    yield RenamedWeights(names)

    def _controlnet_names(self, folder: Path, config: ModelConfig) -> frozenset[str]:
        settings = self.folder_settings(read_model_config(folder), config)["controlnet"]
        with torch.device("meta"):
            return frozenset(self.model_class.controlnet_class.from_config(settings).state_dict())

    def is_added(self, name: str, config: ModelConfig) -> bool:
        """Those of a new ControlNet need not be in the folder."""
        return config.controlnet is None and name.startswith(_CONTROLNET)

    def start_added(self, name: str, module: nn.Module, *, seed: int) -> None:
        """As in a model built at once."""
        from framer.models.controlled import start_added

        start_added(self.model_class, name.removeprefix(_CONTROLNET), module, seed=seed)


class ControlNetSD3Backbone(ControlNetBackbone, SD3Backbone):
    """SD3 with ``SD3ControlNetModel``, which is given the low-resolution image as latents."""

    class_name = "ControlledSD3Transformer2DModel"
    base_name = SD3Backbone.class_name
    input_projection = f"{_BASE}{SD3Backbone.input_projection}"
    attention_parameters = tuple(f"{_CONTROLNET}{pattern}" for pattern in SD3Backbone.attention_parameters)
    condition_like_latents = True
    shared_settings = (
        "in_channels",
        "patch_size",
        "num_attention_heads",
        "attention_head_dim",
        "joint_attention_dim",
        "pooled_projection_dim",
        "pos_embed_max_size",
    )

    _WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = (
        "attn.add_q_proj",
        "attn.norm_added_q",
        "attn.to_add_out",
        "ff_context",
    )
    """Modules of the ControlNet's last block: what it computes of the text goes nowhere."""

    @property
    def model_class(self) -> type[ControlledModel]:
        """The class itself."""
        from framer.models.controlled import ControlledSD3Transformer2DModel

        return ControlledSD3Transformer2DModel

    def own_settings(self, base: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
        """Half as many blocks, as Stable Diffusion 3's ControlNets have; pipelines give it the text and the latents.

        Raises:
            ConfigError: The model has fewer than two blocks.
        """
        blocks = int(base["num_layers"])
        if blocks < 2:
            raise ConfigError(
                f"model.conditioning=controlnet: the model has {blocks} block; a ControlNet's residuals enter between "
                "blocks, so it needs 2 or more"
            )
        return {
            "num_layers": blocks // 2,
            "extra_conditioning_channels": 0,
            "force_zeros_for_pooled_projection": False,
        }

    def check_controlnet(self, settings: Mapping[str, Any], config: ModelConfig, folder: Path) -> None:
        """It must take the model's own latents and text.

        Raises:
            ConfigError: It takes others.
        """
        needs = {"extra_conditioning_channels": 0, "force_zeros_for_pooled_projection": False, "use_pos_embed": True}
        for name, value in needs.items():
            found = settings[name]
            if found != value:
                raise ConfigError(
                    f"{_KEY}: the ControlNet in {folder} has {name} {found}; only those with {value} can be trained "
                    "here, which see the image's latents and the text as the model does"
                )

    def control_parameter_names(self, model: nn.Module) -> frozenset[str]:
        """Those of the ControlNet that have an effect."""
        blocks = tuple(model.get_submodule(f"{_CONTROLNET}transformer_blocks").children())
        last = f"{_CONTROLNET}transformer_blocks.{len(blocks) - 1}."
        idle = tuple(f"{last}{module}." for module in self._WITHOUT_EFFECT)
        return frozenset(
            name for name, _ in model.named_parameters() if name.startswith(_CONTROLNET) and not name.startswith(idle)
        )


class ControlNetUNetBackbone(ControlNetBackbone, UNetBackbone):
    """U-Nets with ``ControlNetModel``, which is given the low-resolution image in pixels."""

    class_name = "ControlledUNet2DConditionModel"
    base_name = UNetBackbone.class_name
    input_projection = f"{_BASE}{UNetBackbone.input_projection}"
    attention_parameters = tuple(f"{_CONTROLNET}{pattern}" for pattern in UNetBackbone.attention_parameters)
    control_parameters = (f"{_CONTROLNET}*",)
    shared_settings = (
        "in_channels",
        "block_out_channels",
        "layers_per_block",
        "cross_attention_dim",
        "addition_embed_type",
        "projection_class_embeddings_input_dim",
    )

    @property
    def model_class(self) -> type[ControlledModel]:
        """The class itself."""
        from framer.models.controlled import ControlledUNet2DConditionModel

        return ControlledUNet2DConditionModel

    def latents_seen(self, latents: LatentSpace) -> LatentSpace:
        """The condition in pixels."""
        return PixelCondition(latents)

    def own_settings(self, base: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
        """An embedding that brings the image to the latents' size.

        Raises:
            ConfigError: Latents are smaller than images by a factor that no such embedding brings them to.
        """
        downscale = latent_shape(config).downscale
        halvings = int(math.log2(downscale))
        if 2**halvings != downscale or halvings >= len(_EMBEDDING_CHANNELS):
            possible = ", ".join(str(2**count) for count in range(len(_EMBEDDING_CHANNELS)))
            raise ConfigError(
                f"model.conditioning=controlnet: latents are {downscale} times smaller than images; a ControlNet can "
                f"bring an image to a size {possible} times smaller"
            )
        return {"conditioning_embedding_out_channels": _EMBEDDING_CHANNELS[: halvings + 1]}

    def check_controlnet(self, settings: Mapping[str, Any], config: ModelConfig, folder: Path) -> None:
        """Its embedding must bring an image of three channels to the latents' size.

        Raises:
            ConfigError: It does not.
        """
        channels = settings["conditioning_channels"]
        smaller = 2 ** (len(settings["conditioning_embedding_out_channels"]) - 1)
        downscale = latent_shape(config).downscale
        if (channels, smaller) != (3, downscale):
            raise ConfigError(
                f"{_KEY}: the ControlNet in {folder} makes images of {channels} channels {smaller} times smaller; "
                f"those here have 3, and latents are {downscale} times smaller"
            )

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
        """Keyword arguments of the model's forward."""
        inputs = super().inputs(model, sample, condition, timesteps, text, image_size=image_size)
        return {**inputs, "condition": unfolded(condition, image_height=image_size[0])}


def _listed(value: object) -> object:
    """A setting as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
