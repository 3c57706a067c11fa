"""What the trainer must know about a family of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from framer.config.model import ModelConfig
from framer.models.text import TextEmbeddings, TextSizes

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

    @property
    def starts_from(self) -> tuple[str, ...]:
        """Names of the classes that a pretrained folder may hold."""
        return (self.class_name,)

    @property
    @abstractmethod
    def model_class(self) -> type[ModelMixin]:
        """The class itself."""

    @abstractmethod
    def settings(self, config: ModelConfig, channels: InputChannels) -> Mapping[str, Any]:
        """Arguments of the class for ``model.architecture``."""

    def start_module(self, name: str, module: nn.Module) -> None:  # noqa: B027 (most families start as diffusers does)
        """Changes a new module's random weights to what the family starts from."""

    def start_model(self, model: ModelMixin) -> None:  # noqa: B027
        """Changes a new model's random weights where a module alone does not say it; runs after all modules."""

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
        self, model: ModelMixin, sample: Tensor, condition: Tensor, timesteps: Tensor, text: TextEmbeddings
    ) -> dict[str, Any]:
        """Keyword arguments of the model's forward.

        Args:
            model: The model.
            sample: Noisy latents, ``[B, C, H, W]``.
            condition: The low-resolution image at the same size, ``[B, C', H, W]``.
            timesteps: ``[B]`` float32 in [0, 1000].
            text: Of the batch.
        """
