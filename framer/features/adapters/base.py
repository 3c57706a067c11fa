"""What FRAMER must know about a family of diffusion models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor, nn

from framer.features.adapters.layouts import Arguments, TokenGrid
from framer.features.errors import FeatureError, UnsupportedModelError


class HeadArguments(NamedTuple):
    """What a model gives the first module of its output head beside the tokens, such as the conditioning vector."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Adapter(ABC):
    """Says where a family of models keeps its layers, what a layer's feature is, and how features become maps.

    Args:
        model: The model itself, without a wrapper about it.
    """

    def __init__(self, model: nn.Module) -> None:
        # Typed Any: every family has attributes of its own, and diffusers carries no types.
        self.model: Any = model

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The layers in the order of the forward pass."""

    @abstractmethod
    def feature(self, index: int, output: Any) -> Tensor:
        """The tensor that holds a layer's feature, out of what the layer returns; not a copy.

        Args:
            index: Number of the layer.
            output: What it returned.
        """

    @abstractmethod
    def token_grid(self, arguments: Arguments) -> TokenGrid:
        """The grid of the last layer's feature map, from the arguments of the model's forward.

        Raises:
            FeatureError: They do not tell one grid.
        """

    @abstractmethod
    def to_map(self, index: int, feature: Tensor, arguments: Arguments, grid: TokenGrid) -> Tensor:
        """A layer's feature as a map, ``[B*F, D, h, w]`` for F frames, a view where possible.

        Raises:
            FeatureError: The feature does not fill the grid.
        """

    def recomputed_parts(self, index: int) -> Sequence[nn.Module]:
        """The modules of a layer that checkpointing recomputes one by one: the layer itself, unless it is a large one.

        Args:
            index: Number of the layer.
        """
        return (self.blocks[index],)

    @property
    def changed_by_diffusers_checkpointing(self) -> tuple[str, ...]:
        """Arguments of the model's forward that diffusers' own checkpointing keeps from the blocks, or brings there."""
        return ()

    @property
    def channels(self) -> tuple[int, ...] | None:
        """Channels of every layer's map, where layers differ in shape and students need heads; None elsewhere."""
        return None

    def check_students(self, students: Sequence[int], teacher: int) -> None:
        """Checks, before any forward pass, that the model has what :meth:`to_teacher` needs.

        Args:
            students: Numbers of the students' layers.
            teacher: Number of the teacher's layer.

        Raises:
            MissingHeadsError: A student lacks a head, or has one for another teacher.
        """
        return

    def to_teacher(self, index: int, feature: Tensor, teacher: Tensor) -> Tensor:
        """A student's map in the teacher's shape.

        Args:
            index: Number of the student's layer.
            feature: Its map ``[B*F, D, h, w]``.
            teacher: The teacher's.

        Raises:
            FeatureError: Its shape is another one, and the family has no heads for that.
            MissingHeadsError: The family has heads for that, and the model lacks the student's.
        """
        if feature.shape != teacher.shape:
            raise FeatureError(
                f"{self.block_names[index]} has a feature map of shape {list(feature.shape)}, but the teacher's has "
                f"{list(teacher.shape)}: choose students and a teacher of one shape."
            )
        return feature

    @property
    def head_module(self) -> nn.Module | None:
        """The first module of the output head; None where the head is not known."""
        return None

    def predict(self, feature: Tensor, head_arguments: HeadArguments, grid: TokenGrid) -> Tensor:
        """Applies the model's own output head.

        Args:
            feature: A layer's map as :meth:`to_map` gives it.
            head_arguments: What the model gave the head beside the tokens.
            grid: The grid of tokens.

        Returns:
            The prediction ``[B, C, H, W]``; of the last layer, the model's own output.

        Raises:
            UnsupportedModelError: No output head is known of the model.
        """
        raise UnsupportedModelError(f"no output head is known of {type(self.model).__name__}.")

    @cached_property
    def block_names(self) -> tuple[str, ...]:
        """The layers' names within the model, for example ``transformer_blocks.3``."""
        names = {module: name for name, module in self.model.named_modules()}
        return tuple(names[block] for block in self.blocks)
