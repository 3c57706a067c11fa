"""What FRAMER must know about a family of diffusion transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn


class Adapter(ABC):
    """Says where a family of diffusers transformers keeps its blocks, image tokens and output head.

    The model must call its blocks through diffusers' ``_gradient_checkpointing_func(block, *arguments)`` when
    ``gradient_checkpointing`` is set, as diffusers' own transformers do.

    Args:
        model: The diffusers model itself, without a wrapper about it.
    """

    block_arguments: ClassVar[tuple[str, ...]]
    """Names of the arguments that the model hands to a block, in the order in which it hands them over."""

    conditioning_argument: ClassVar[str]
    """Which of ``block_arguments`` is the conditioning vector that the output head takes as well."""

    sample_argument: ClassVar[str] = "hidden_states"
    """Name of the first argument of the model's forward: its noisy input, ``[B, C, H, W]``."""

    def __init__(self, model: nn.Module) -> None:
        # Typed Any: every family has attributes of its own, and diffusers carries no types.
        self.model: Any = model

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks in the order of the forward pass; the last one is the teacher."""

    @abstractmethod
    def image_tokens(self, block_output: Any) -> Tensor:
        """Picks the image tokens ``[B, h*w, D]`` out of what a block returns, without copying them."""

    @abstractmethod
    def token_grid(self, sample: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens ``(h, w)`` that the model makes of its input ``[B, C, H, W]``."""

    @abstractmethod
    def predict(self, tokens: Tensor, conditioning: Tensor, grid: tuple[int, int]) -> Tensor:
        """Applies the model's own final norm, output projection and unpatchify.

        Args:
            tokens: Image tokens ``[B, h*w, D]``.
            conditioning: Conditioning vector of the blocks, ``[B, E]``.
            grid: Rows and columns of tokens.

        Returns:
            The prediction ``[B, C, H, W]``; of the last block's tokens, the model's own output.
        """

    def input_sample(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Finds the noisy input among the arguments of the model's forward."""
        sample: Tensor = args[0] if args else kwargs[self.sample_argument]
        return sample

    @property
    def block_names(self) -> tuple[str, ...]:
        """The blocks' names within the model, for example ``transformer_blocks.3``."""
        names = {module: name for name, module in self.model.named_modules()}
        return tuple(names[block] for block in self.blocks)
