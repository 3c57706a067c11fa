"""Recognising a transformer that nobody declared, where nothing can be mistaken."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from framer.features.adapters.grids import patchified
from framer.features.adapters.layouts import Arguments, Stack, TokenGrid, TransformerLayout
from framer.features.adapters.transformer import TransformerAdapter
from framer.features.errors import FeatureError

_PATHS = ("transformer_blocks", "blocks", "layers")
_SAMPLES = ("hidden_states", "sample", "x")
MIN_BLOCKS = 3


class RecognisedAdapter(TransformerAdapter):
    """A plain transformer: one list of like blocks, one token a patch of its input ``[B, C, H, W]``, text apart.

    A block may return its tokens alone, or in a tuple that holds no other sequence. Anything else is refused.
    """

    def feature(self, index: int, output: Any) -> Tensor:
        """The block's only sequence; of a tuple, all of them are told apart once the grid is known.

        Raises:
            FeatureError: It returned a tuple with no sequence of tokens, or with several.
        """
        if isinstance(output, tuple | list):
            sequences = [value for value in output if isinstance(value, Tensor) and value.ndim == 3]
            if len(sequences) == 1:
                return sequences[0]
            raise FeatureError(
                f"{self.block_names[index]} returned {len(sequences)} sequences of tokens, and nobody said which of "
                f"them is the image. {how_to_declare(self._class)}"
            )
        return super().feature(index, output)

    def to_map(self, index: int, feature: Tensor, arguments: Arguments, grid: TokenGrid) -> Tensor:
        """The block's tokens as a map; refuses sequences that hold more than the image.

        Raises:
            FeatureError: The tokens are not those of the grid alone.
        """
        if feature.ndim != 3 or feature.shape[1] != grid.tokens:
            raise FeatureError(
                f"{self.block_names[index]} gave tokens of shape {list(feature.shape)}, but the input of {self._class} "
                f"makes a grid of {grid} = {grid.tokens} patches. {how_to_declare(self._class)}"
            )
        return super().to_map(index, feature, arguments, grid)


def recognise(model: nn.Module) -> RecognisedAdapter | None:
    """An adapter by structure, or None where the structure leaves a doubt.

    Safe means: exactly one list of three or more blocks of one class, called ``transformer_blocks``, ``blocks`` or
    ``layers``; no other list of modules beside it; an integer ``patch_size`` in its config; a forward whose first
    argument is the sample.
    """
    lists = {name: module for name, module in model.named_children() if isinstance(module, nn.ModuleList)}
    patch = getattr(getattr(model, "config", None), "patch_size", None)
    if len(lists) != 1 or type(patch) is not int:
        return None
    ((path, blocks),) = lists.items()
    sample = next(iter(inspect.signature(model.forward).parameters), None)
    if path not in _PATHS or sample not in _SAMPLES:
        return None
    if len(blocks) < MIN_BLOCKS or len({type(block) for block in blocks}) != 1:
        return None
    return RecognisedAdapter(model, TransformerLayout((Stack(path),), patchified(sample)))


def how_to_declare(model_class: str) -> str:
    """What a user does about a class that is not known."""
    return (
        "Declare where its blocks and image tokens are:\n"
        "    from framer.features import Stack, TransformerLayout, patchified, register_layout\n"
        f"    register_layout({model_class!r}, TransformerLayout(\n"
        "        stacks=(Stack('transformer_blocks', output=1, tokens='all'),), grid=patchified('hidden_states')))\n"
        "output: which element of a block's returned tuple holds the image tokens (None: it returns them alone); "
        "tokens: 'last' where text comes first in that sequence, 'first' where it comes after."
    )
