"""Captures every block's output through diffusers' own checkpointing seam.

A diffusers transformer that has ``gradient_checkpointing`` set calls ``_gradient_checkpointing_func(block,
*arguments)`` once a block, from outside the block. A function put there sees each block's output exactly
once: what a checkpoint recomputes in the backward pass lies inside. And what it sees is the very tensor that
flows into the next block, so that gradients through it are right whatever checkpoints the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from framer.features.adapters import Adapter
from framer.features.errors import CaptureError, FeatureError


@dataclass(frozen=True)
class Capture:
    """What one forward pass left behind.

    Attributes:
        tokens: Each block's image tokens ``[B, h*w, D]``, the last one the teacher's; not copies.
        grid: Rows and columns of tokens ``(h, w)``.
        conditioning: The conditioning vector that the blocks saw, ``[B, E]``.
        checkpointed: Whether the model recomputes its blocks in the backward pass.
        autocast_dtype: The dtype to which the blocks were autocast; None without autocast.
    """

    tokens: tuple[Tensor, ...]
    grid: tuple[int, int]
    conditioning: Tensor
    checkpointed: bool
    autocast_dtype: torch.dtype | None


class BlockTap:
    """Records the image tokens of every block of a model during one forward pass.

    Nothing of it stays on the model between recordings.

    Args:
        adapter: The model, and where it keeps its blocks and tokens.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._conditioning_index = adapter.block_arguments.index(adapter.conditioning_argument)
        self._recording = False
        self._checkpoint: Callable[..., Any] | None = None
        self._tokens: list[Tensor] = []
        self._conditioning: Tensor | None = None
        self._sample: Tensor | None = None
        self._autocast_dtype: torch.dtype | None = None
        self._capture: Capture | None = None

    @property
    def capture(self) -> Capture | None:
        """What the last recording left; None before it and after ``clear``."""
        return self._capture

    def clear(self) -> None:
        """Drops every reference to what was captured.

        Raises:
            CaptureError: A recording is open.
        """
        if self._recording:
            raise CaptureError("capture() is still open: leave its with block first.")
        self._capture = None
        self._clear_recording()

    @contextmanager
    def record(self) -> Iterator[None]:
        """Records the one forward pass of the model that runs inside; an earlier recording is dropped.

        On leaving, the model has the checkpointing flag and function that it had before, also after an
        exception.

        Raises:
            CaptureError: Gradients are disabled, a recording is open already, or what ran inside was not
                exactly one pass through every block with gradients.
            FeatureError: A block's tokens do not fill the token grid of the model's input.
        """
        self.clear()
        if not torch.is_grad_enabled():
            raise CaptureError(
                "capture() was entered with gradients disabled (torch.no_grad or torch.inference_mode), "
                "where diffusers does not call its blocks through the checkpointing function. Enter it under "
                "torch.enable_grad()."
            )
        model = self._adapter.model
        checkpointed, function = bool(model.gradient_checkpointing), model._gradient_checkpointing_func
        self._checkpoint = function if checkpointed else None
        input_hook = model.register_forward_pre_hook(self._see_input, with_kwargs=True)
        model.gradient_checkpointing, model._gradient_checkpointing_func = True, self._call_block
        self._recording = True
        try:
            try:
                yield
            finally:
                model.gradient_checkpointing, model._gradient_checkpointing_func = checkpointed, function
                input_hook.remove()
                self._recording = False
                self._checkpoint = None
            self._capture = self._checked_capture(checkpointed)
        finally:
            self._clear_recording()

    def _clear_recording(self) -> None:
        self._tokens.clear()
        self._conditioning = None
        self._sample = None
        self._autocast_dtype = None

    def _see_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._sample = self._adapter.input_sample(args, kwargs)

    def _call_block(self, block: nn.Module, *args: Any) -> Any:
        if self._checkpoint is None:
            # By keyword, as the model itself calls a block that it does not checkpoint.
            output = block(**dict(zip(self._adapter.block_arguments, args, strict=True)))
        else:
            output = self._checkpoint(block, *args)
        tokens = self._adapter.image_tokens(output)
        self._tokens.append(tokens)
        self._conditioning = args[self._conditioning_index]
        self._autocast_dtype = _autocast_dtype(tokens.device.type)
        return output

    def _checked_capture(self, checkpointed: bool) -> Capture:
        model_name, blocks = type(self._adapter.model).__name__, self._adapter.blocks
        if len(self._tokens) != len(blocks):
            raise CaptureError(
                f"captured {len(self._tokens)} features of {model_name}, which has {len(blocks)} blocks. "
                "Inside capture() the model must be called exactly once, with gradients enabled and without "
                "skip_layers."
            )
        if self._sample is None or self._conditioning is None:
            raise CaptureError(
                f"the blocks of {model_name} ran, but its input was not seen: call the model itself, "
                "model(...), rather than model.forward(...)."
            )
        height, width = grid = self._adapter.token_grid(self._sample)
        for name, block, tokens in zip(self._adapter.block_names, blocks, self._tokens, strict=True):
            if tokens.ndim != 3 or tokens.shape[1] != height * width:
                raise FeatureError(
                    f"{name} gave image tokens of shape {list(tokens.shape)}, but the model's input of "
                    f"shape {list(self._sample.shape)} makes a grid of {height} x {width} = "
                    f"{height * width} tokens."
                )
            if not tokens.requires_grad and any(parameter.requires_grad for parameter in block.parameters()):
                raise CaptureError(
                    f"{name} has parameters that train, but its output does not require a gradient. "
                    "Reentrant checkpointing does this where a block's inputs need no gradient "
                    "(use_reentrant=True with frozen embeddings): checkpoint with "
                    "model.enable_gradient_checkpointing(), which is not reentrant, or pass "
                    "use_reentrant=False in a function of your own."
                )
        return Capture(tuple(self._tokens), grid, self._conditioning, checkpointed, self._autocast_dtype)


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype of the autocast region about the caller; None outside of one."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None
