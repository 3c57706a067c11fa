"""Modules whose calls run under a checkpoint, with the arguments of the plain pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Checkpoint = Callable[..., Any]
"""``checkpoint(function, *inputs)``: runs the function, and again in the backward pass; not reentrant."""


class RecomputedCall:
    """Stands in for a module's call, hooks and all, and runs it under a checkpoint where gradients are enabled.

    Args:
        call: The module's own call, compiled or not.
        checkpoint: How it is recomputed.
    """

    def __init__(self, call: Callable[..., Any], checkpoint: Checkpoint) -> None:
        self.call = call
        self._checkpoint = checkpoint

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns."""
        if not torch.is_grad_enabled():
            return self.call(*args, **kwargs)
        positional, names = len(args), tuple(kwargs)

        def run(*values: Any) -> Any:
            named = zip(names, values[positional:], strict=True)
            return self.call(*values[:positional], **dict(named))

        # Checkpoints keep track of positional inputs alone.
        return self._checkpoint(run, *args, *kwargs.values())


def recompute(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Makes a module run under a checkpoint from now on; one that does already gets the new checkpoint.

    A module that is compiled by itself must be compiled already: the checkpoint goes around. ``torch.compile`` around a
    larger module does not see it. Copies of the module are plain ones.

    Args:
        module: Any module.
        checkpoint: How it is recomputed.
    """
    # Where torch itself looks for another call of one module: it runs outside the module's hooks, so that these run in
    # the recomputation too, as ZeRO 3 needs.
    compiled = module._compiled_call_impl
    if isinstance(compiled, RecomputedCall):
        compiled = compiled.call
    module._compiled_call_impl = RecomputedCall(module._call_impl if compiled is None else compiled, checkpoint)


def is_recomputed(module: nn.Module) -> bool:
    """Whether the module's call runs under a checkpoint that :func:`recompute` put there."""
    return isinstance(module._compiled_call_impl, RecomputedCall)


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called."""
    call = module._compiled_call_impl
    if isinstance(call, RecomputedCall):
        call = call.call
    return call is not None and call != module._call_impl
