"""How a class of transformers is declared: where its blocks are, and where a block's image tokens lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor, nn


class TokenGrid(NamedTuple):
    """How image tokens lie: frame by frame, each row by row; 1 frame for images."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.frames * self.height * self.width

    def __str__(self) -> str:
        sides = (self.height, self.width) if self.frames == 1 else self
        return " x ".join(map(str, sides))


Arguments: TypeAlias = Mapping[str, Any]
"""Arguments of a model's forward by their names, those left out missing."""

GridRule: TypeAlias = Callable[[nn.Module, Arguments], TokenGrid]
"""The grid of tokens that a model makes of its arguments."""

TokenPicker: TypeAlias = Callable[[Tensor, Arguments, TokenGrid], Tensor]
"""Picks the image tokens ``[B, F*h*w, D]`` out of a sequence ``[B, L, D]``."""


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after the other."""

    path: str
    """Where the model keeps them: the name of a ``ModuleList``."""
    output: int | None = None
    """Which element of what a block returns holds the image tokens; None: it returns nothing else."""
    tokens: Literal["all", "first", "last"] | TokenPicker = "all"
    """Where the image tokens lie in that sequence; ``last``: text comes first."""


@dataclass(frozen=True)
class Head:
    """The model's own way from the last block's tokens to its prediction, which `x0` and `velocity` need."""

    modules: tuple[str, ...] = ("norm_out", "proj_out")
    """Called in turn; what the model itself gives the first one beside the tokens is given to it again."""
    order: Literal["spatial_first", "channels_first", "packed"] = "spatial_first"
    """What a token's channels are: a patch's pixels with their channels ``(p, p, C)``, channels with their pixels
    ``(C, p, p)``, or channels of a model whose input is packed into tokens already."""


@dataclass(frozen=True)
class TransformerLayout:
    """A class of transformers.

    Example:
        TransformerLayout(stacks=(Stack("transformer_blocks", output=1),), grid=patchified())
    """

    stacks: tuple[Stack, ...]
    """In the order of the forward pass; the last block of the last stack is the teacher."""
    grid: GridRule
    """Which grid the image tokens make."""
    head: Head | None = None
    """None: features are compared as `hidden` only."""
    changed_by_diffusers_checkpointing: tuple[str, ...] = ()
    """Arguments of the forward that diffusers' own checkpointing keeps from blocks that get them otherwise, or the
    other way round: refused together with it."""
