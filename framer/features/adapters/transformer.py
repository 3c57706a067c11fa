"""Adapter of transformers that a layout declares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from framer.features.adapters.base import Adapter, HeadArguments
from framer.features.adapters.grids import patch_side
from framer.features.adapters.layouts import Arguments, Stack, TokenGrid, TransformerLayout
from framer.features.errors import FeatureError, UnsupportedModelError


class TransformerAdapter(Adapter):
    """A transformer whose blocks' image tokens lie where its layout says.

    Args:
        model: The transformer itself.
        layout: Of its class.

    Raises:
        UnsupportedModelError: The model has no blocks where the layout says.
    """

    def __init__(self, model: nn.Module, layout: TransformerLayout) -> None:
        super().__init__(model)
        self.layout = layout
        self._blocks: list[nn.Module] = []
        self._stacks: list[Stack] = []
        for stack in layout.stacks:
            blocks = _submodule(model, stack.path)
            self._blocks.extend(blocks)
            self._stacks.extend([stack] * len(blocks))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks of all stacks."""
        return self._blocks

    def feature(self, index: int, output: Any) -> Tensor:
        """The sequence that holds a block's image tokens.

        Raises:
            FeatureError: The block returned something else than its class's layout says.
        """
        place = self._stacks[index].output
        value = output
        if place is not None:
            if not isinstance(output, tuple | list) or not -len(output) <= place < len(output):
                raise FeatureError(
                    f"{self.block_names[index]} returned {_described(output)}, but the layout of {self._class} says "
                    f"that element {place} holds the image tokens."
                )
            value = output[place]
        if not isinstance(value, Tensor):
            raise FeatureError(
                f"{self.block_names[index]} returned {_described(output)}, where its class's layout expects "
                f"image tokens [B, L, D]{'' if place is None else f' as element {place}'}."
            )
        return value

    def token_grid(self, arguments: Arguments) -> TokenGrid:
        """The grid that the layout's rule tells.

        Raises:
            FeatureError: The forward was not given the argument that tells it.
        """
        try:
            return self.layout.grid(self.model, arguments)
        except KeyError as error:
            raise FeatureError(
                f"the token grid of {self._class} needs the forward's argument {error}, which was not given; got "
                f"{', '.join(arguments)}."
            ) from None

    def to_map(self, index: int, feature: Tensor, arguments: Arguments, grid: TokenGrid) -> Tensor:
        """The image tokens as maps ``[B*F, D, h, w]``, a view for images."""
        tokens = self._image_tokens(index, feature, arguments, grid)
        batch, _, channels = tokens.shape
        frames, height, width = grid
        if frames == 1:
            return tokens.transpose(1, 2).view(batch, channels, height, width)
        return (
            tokens.reshape(batch * frames, height * width, channels).transpose(1, 2).view(-1, channels, height, width)
        )

    def _image_tokens(self, index: int, feature: Tensor, arguments: Arguments, grid: TokenGrid) -> Tensor:
        where = self._stacks[index].tokens
        tokens = feature
        if callable(where):
            tokens = where(feature, arguments, grid)
        elif feature.ndim == 3 and feature.shape[1] >= grid.tokens:
            if where == "first":
                tokens = feature[:, : grid.tokens]
            elif where == "last":
                tokens = feature[:, feature.shape[1] - grid.tokens :]
        if tokens.ndim != 3 or tokens.shape[1] != grid.tokens:
            raise FeatureError(
                f"{self.block_names[index]} gave image tokens of shape {list(tokens.shape)}, but the input of "
                f"{self._class} makes a grid of {grid} = {grid.tokens} tokens."
            )
        return tokens

    @property
    def changed_by_diffusers_checkpointing(self) -> tuple[str, ...]:
        """Those that the layout names."""
        return self.layout.changed_by_diffusers_checkpointing

    @property
    def head_module(self) -> nn.Module | None:
        """The first module of the declared head."""
        head = self.layout.head
        return None if head is None else self.model.get_submodule(head.modules[0])

    def predict(self, feature: Tensor, head_arguments: HeadArguments, grid: TokenGrid) -> Tensor:
        """The declared head, then unpatchify.

        Raises:
            UnsupportedModelError: The layout of the class declares no head.
        """
        head = self.layout.head
        if head is None:
            raise UnsupportedModelError(f"no output head is declared for {self._class}.")
        first, *others = (self.model.get_submodule(name) for name in head.modules)
        values: Tensor = first(feature.flatten(2).transpose(1, 2), *head_arguments.args, **head_arguments.kwargs)
        for module in others:
            values = module(values)
        if head.order == "packed":
            return values.transpose(1, 2).reshape(values.shape[0], -1, grid.height, grid.width)
        patch = patch_side(self.model)
        if head.order == "spatial_first":
            # [B, h*w, p*p*C] -> [B, h, w, p, p, C] -> [B, C, h, p, w, p]
            patches = values.reshape(-1, grid.height, grid.width, patch, patch, values.shape[-1] // patch**2)
            patches = patches.permute(0, 5, 1, 3, 2, 4)
        else:
            # [B, h*w, C*p*p] -> [B, h, w, C, p, p] -> [B, C, h, p, w, p]
            patches = values.reshape(-1, grid.height, grid.width, values.shape[-1] // patch**2, patch, patch)
            patches = patches.permute(0, 3, 1, 4, 2, 5)
        return patches.flatten(4, 5).flatten(2, 3)

    @property
    def _class(self) -> str:
        return type(self.model).__name__


def _submodule(model: nn.Module, path: str) -> list[nn.Module]:
    try:
        stack = model.get_submodule(path)
    except AttributeError:
        stack = None
    if not isinstance(stack, nn.ModuleList):
        lists = [name for name, module in model.named_children() if isinstance(module, nn.ModuleList)]
        raise UnsupportedModelError(
            f"{type(model).__name__} has no blocks at '{path}', where its layout says they are; its lists of modules: "
            f"{', '.join(lists) or 'none'}."
        )
    return list(stack)


def _described(value: Any) -> str:
    """What a block returned, in words."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
