"""Captures layers' outputs during one forward pass.

A hook on a layer sees what it returns. Where a diffusers transformer recomputes its blocks
(``gradient_checkpointing``), it calls ``_gradient_checkpointing_func(block, *arguments)`` once a block, from outside
the block; a function put there sees each output exactly once, because what a checkpoint recomputes in the backward
pass lies inside. Either way it is the very tensor that flows on, so that gradients through it are right whatever
checkpoints the block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from framer.features.adapters import Adapter
from framer.features.adapters.base import HeadArguments
from framer.features.adapters.layouts import TokenGrid
from framer.features.errors import CaptureError
from framer.patching import replaced


@dataclass(frozen=True)
class Capture:
    """What one forward pass left behind.

    Attributes:
        features: Maps ``[B*F, D, h, w]`` of the captured layers by their numbers; not copies.
        grid: The grid of the image tokens.
        head_arguments: What the model gave its output head beside the tokens; None where its head is not known.
        checkpointed: Whether the model recomputes its layers in the backward pass.
        autocast_dtype: The dtype to which the layers were autocast; None without autocast.
    """

    features: dict[int, Tensor]
    grid: TokenGrid
    head_arguments: HeadArguments | None
    checkpointed: bool
    autocast_dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast as about the layers, for modules that take their features on; nothing where there was none."""
        if self.autocast_dtype is None:
            return nullcontext()
        feature = next(iter(self.features.values()))
        return torch.autocast(feature.device.type, self.autocast_dtype)


class FeatureTap:
    """Records what layers of a model return during one forward pass.

    Nothing of it stays on the model between recordings.

    Args:
        adapter: The model, and where it keeps its layers.
        layers: Numbers of the layers whose features are wanted; all by default.
    """

    def __init__(self, adapter: Adapter, layers: Collection[int] | None = None) -> None:
        self._adapter = adapter
        self._blocks = tuple(adapter.blocks)
        self._wanted = frozenset(range(len(self._blocks)) if layers is None else layers)
        self._numbers = {id(block): number for number, block in enumerate(self._blocks)}
        self._argument_names = tuple(inspect.signature(adapter.model.forward).parameters)
        self._recording = False
        self._needs_gradients = True
        self._checkpoint: Callable[..., Any] | None = None
        self._capture: Capture | None = None
        self._clear_recording()

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
    def record(self, *, gradients: bool = True) -> Iterator[None]:
        """Records the one forward pass of the model that runs inside; an earlier recording is dropped.

        On leaving, the model carries no hook and has the checkpointing function that it had before, also after an
        exception.

        Args:
            gradients: Whether the features must carry gradients.

        Raises:
            CaptureError: Gradients are wanted and disabled, a recording is open already, or what ran inside was not
                exactly one pass through every layer.
            FeatureError: A layer's tokens do not fill the token grid of the model's input.
        """
        self.clear()
        if gradients and not torch.is_grad_enabled():
            raise CaptureError(
                "capture() was entered with gradients disabled (torch.no_grad or torch.inference_mode), where the loss "
                "of its features would have no gradient. Enter it under torch.enable_grad()."
            )
        checkpointed = bool(getattr(self._adapter.model, "gradient_checkpointing", False))
        self._needs_gradients = gradients
        self._recording = True
        try:
            try:
                with ExitStack() as stack:
                    self._watch(stack, checkpointed)
                    yield
            finally:
                self._recording = False
                self._checkpoint = None
            self._capture = self._checked_capture(checkpointed)
        finally:
            self._clear_recording()

    def _watch(self, stack: ExitStack, checkpointed: bool) -> None:
        model = self._adapter.model
        stack.callback(model.register_forward_pre_hook(self._see_input, with_kwargs=True).remove)
        head = self._adapter.head_module
        if head is not None:
            stack.callback(head.register_forward_pre_hook(self._see_head, with_kwargs=True).remove)
        for block in self._blocks:
            compiled = getattr(block, "_compiled_call_impl", None)
            if compiled is None:
                stack.callback(block.register_forward_hook(self._see_output).remove)
            else:
                # A compiled block does not see hooks that come after its compilation.
                stack.enter_context(replaced(block, "_compiled_call_impl", self._watched_call(block, compiled)))
        if checkpointed and hasattr(model, "_gradient_checkpointing_func"):
            self._checkpoint = model._gradient_checkpointing_func
            stack.enter_context(replaced(model, "_gradient_checkpointing_func", self._call_block))

    def _clear_recording(self) -> None:
        self._count = 0
        self._outputs: dict[int, Tensor] = {}
        self._called_by_checkpoint: set[int] = set()
        self._arguments: dict[str, Any] | None = None
        self._head_arguments: HeadArguments | None = None
        self._autocast_dtype: torch.dtype | None = None

    def _see_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recording:
            self._arguments = {**dict(zip(self._argument_names, args, strict=False)), **kwargs}

    def _see_head(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recording:
            self._head_arguments = HeadArguments(args[1:], kwargs)

    def _see_output(self, block: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        number = self._numbers[id(block)]
        # What a checkpoint runs is seen outside of it; in here it runs twice.
        if number not in self._called_by_checkpoint:
            self._record(number, output)

    def _watched_call(self, block: nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = compiled(*args, **kwargs)
            self._see_output(block, args, output)
            return output

        return call

    def _call_block(self, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        assert self._checkpoint is not None
        # PRX hands over a block's bound __call__ in place of the block.
        number = self._numbers.get(id(getattr(block, "__self__", block)))
        if number is None:  # something else that the model recomputes, such as a refiner of the text
            return self._checkpoint(block, *args, **kwargs)
        self._called_by_checkpoint.add(number)
        output = self._checkpoint(block, *args, **kwargs)
        self._record(number, output)
        return output

    def _record(self, number: int, output: Any) -> None:
        if not self._recording or (self._needs_gradients and not torch.is_grad_enabled()):
            return
        self._count += 1
        if number in self._wanted:
            feature = self._outputs[number] = self._adapter.feature(number, output)
            self._autocast_dtype = _autocast_dtype(feature.device.type)

    def _checked_capture(self, checkpointed: bool) -> Capture:
        adapter, model_name = self._adapter, type(self._adapter.model).__name__
        if self._count != len(self._blocks) or len(self._outputs) != len(self._wanted):
            raise CaptureError(
                f"captured {self._count} features of {model_name}, which has {len(self._blocks)} blocks. "
                "Inside capture() the model must be called exactly once, with gradients enabled and without "
                "skip_layers."
            )
        if self._arguments is None:
            raise CaptureError(
                f"the blocks of {model_name} ran, but its input was not seen: call the model itself, "
                "model(...), rather than model.forward(...)."
            )
        arguments = self._arguments
        grid = adapter.token_grid(arguments)
        features: dict[int, Tensor] = {}
        for number, output in sorted(self._outputs.items()):
            features[number] = adapter.to_map(number, output, arguments, grid)
            trains = any(parameter.requires_grad for parameter in self._blocks[number].parameters())
            if self._needs_gradients and trains and not output.requires_grad:
                raise CaptureError(
                    f"{adapter.block_names[number]} has parameters that train, but its output does not require a "
                    "gradient. Reentrant checkpointing does this where a block's inputs need no gradient "
                    "(use_reentrant=True with frozen embeddings): checkpoint with "
                    "model.enable_gradient_checkpointing(), which is not reentrant, or pass "
                    "use_reentrant=False in a function of your own."
                )
        return Capture(features, grid, self._head_arguments, checkpointed, self._autocast_dtype)


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype of the autocast region about the caller; None outside of one."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None
