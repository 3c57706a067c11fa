"""Finding where numbers stopped being finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from framer.errors import UserError
from framer.training.ranks import gather_objects


class NonFiniteLossError(UserError):
    """The loss is not finite; the message names the step and the first layer that is not."""


def first_non_finite_layer(model: nn.Module, inputs: Mapping[str, Tensor]) -> str | None:
    """Runs the model once more and names the first module whose output is not finite.

    All ranks must call it together.

    Args:
        model: The model, with the weights that gave the non-finite loss.
        inputs: Keyword arguments of the forward pass that gave it.

    Returns:
        The module's name, on the first rank that has one; the name of an input, where that is not finite itself; None
        if all is finite.
    """
    found = [f"input {name}" for name, value in inputs.items() if not bool(torch.isfinite(value).all())]

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            tensors = output if isinstance(output, (tuple, list)) else (output,)
            if not found and any(isinstance(t, Tensor) and not torch.isfinite(t).all() for t in tensors):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    # All ranks have run the forward pass, which gathers parameters under ZeRO 3; what one found, all report.
    return next((name for name in gather_objects(found[0] if found else None) if name is not None), None)
