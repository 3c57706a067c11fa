"""What the trainer must know about a family of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from framer.config.model import ModelConfig
from framer.models.latents import LatentSpace
from framer.models.modulewise import draw
from framer.models.text import TextEmbeddings, TextSizes
from framer.models.weights import WeightReader, open_weights

if TYPE_CHECKING:
    from diffusers import ModelMixin


class InputChannels(NamedTuple):
    """Channels of what the model is given and of what it gives."""

    latents: int
    """Of the noisy latents, and of the prediction."""
    condition: int
    """Of the low-resolution image beside them."""


class Backbone(ABC):
    """A family of diffusers models: how it is built, what sizes it takes, and how it is called."""

    class_name: ClassVar[str]
    """Name of the model's class."""

    input_projection: ClassVar[str]
    """Name of the convolution that the latents enter through."""

    attention_parameters: ClassVar[tuple[str, ...]]
    """Patterns of the parameters of the blocks' attention."""

    control_parameters: ClassVar[tuple[str, ...]]
    """Patterns of the parameters through which the low-resolution image enters."""

    condition_joins_input: ClassVar[bool] = True
    """Whether the condition's channels are joined to the latents'."""

    condition_like_latents: ClassVar[bool] = False
    """Whether the condition must have as many channels as the latents."""

    drawn_by_name: ClassVar[bool] = True
    """Whether a module's random weights depend on the seed and its name alone, not on the order of modules."""

    trained_part: ClassVar[str] = ""
    """Name of the submodule that alone may train and is exported; empty: the whole model."""

    @property
    def starts_from(self) -> tuple[str, ...]:
        """Names of the classes that a pretrained folder may hold."""
        return (self.class_name,)

    @property
    @abstractmethod
    def model_class(self) -> type[ModelMixin]:
        """The class itself."""

    @property
    def exported_class(self) -> str:
        """Name of the class that an export holds."""
        return self.class_name

    def latents_seen(self, latents: LatentSpace) -> LatentSpace:
        """The latent space with the condition that the family sees, which is its own by default."""
        return latents

    def adopt(self, model: ModelMixin, config: ModelConfig, *, seed: int) -> ModelMixin:
        """A pretrained folder's model as one of the family's, which may have more to it."""
        return model

    def folder_settings(self, settings: Mapping[str, Any], config: ModelConfig) -> Mapping[str, Any]:
        """Settings of the family's class for a pretrained folder's ``config.json``."""
        return settings

    def open_weights(self, folder: Path, config: ModelConfig) -> AbstractContextManager[WeightReader]:
        """A pretrained folder's weights, by the names that the family's class has for them."""
        return open_weights(folder)

    def is_added(self, name: str, config: ModelConfig) -> bool:
        """Whether :meth:`adopt` adds this parameter."""
        return False

    def start_added(self, name: str, module: nn.Module, *, seed: int) -> None:
        """Gives an added module that is no copy its first weights."""
        draw(module)

    def source_of_added(self, name: str) -> str | None:
        """Which of the folder's parameters an added one starts as a copy of; None: it starts as its module starts."""
        return None

    def control_parameter_names(self, model: ModelMixin) -> frozenset[str]:
        """Names of the parameters through which the low-resolution image enters."""
        names = (name for name, _ in model.named_parameters())
        return frozenset(n for n in names if any(fnmatchcase(n, pattern) for pattern in self.control_parameters))

    @abstractmethod
    def settings(self, config: ModelConfig, channels: InputChannels) -> Mapping[str, Any]:
        """Arguments of the class for ``model.architecture``."""

    def start_module(self, name: str, module: nn.Module) -> None:  # noqa: B027 (most families start as diffusers does)
        """Changes a new module's random weights to what the family starts from."""

    def start_model(self, model: ModelMixin) -> None:  # noqa: B027
        """Changes a new model's random weights where a module alone does not say it; runs after all modules."""

    def check_model(self, model: ModelMixin) -> None:  # noqa: B027 (most families can call all of their models)
        """Refuses a model of the class that needs more than :meth:`inputs` gives.

        Raises:
            ConfigError: What it needs, by its config's key.
        """

    @abstractmethod
    def multiple(self, model: ModelMixin) -> int:
        """What heights and widths of latents must be multiples of."""

    @abstractmethod
    def largest_side(self, model: ModelMixin) -> int | None:
        """Largest height and width of latents; None where there is no limit."""

    @abstractmethod
    def feature_size(self, model: ModelMixin, height: int, width: int) -> tuple[int, int]:
        """Height and width of the teacher's feature map, for latents of a height and width."""

    @abstractmethod
    def text_sizes(self, model: ModelMixin) -> TextSizes:
        """Channels of the text embeddings that the model takes."""

    @abstractmethod
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
        """Keyword arguments of the model's forward.

        Args:
            model: The model.
            sample: Noisy latents, ``[B, C, H, W]``.
            condition: The low-resolution image at the same size, ``[B, C', H, W]``.
            timesteps: ``[B]`` float32 in [0, 1000].
            text: Of the batch.
            image_size: Height and width of the images, in pixels.
        """
