"""Steps whose numbers are not finite: where that began, how many were skipped, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from framer.errors import UserError
from framer.training.ranks import gather_objects


class NonFiniteLossError(UserError):
    """The loss or the gradient is not finite; the message names the step and where that began."""


@dataclass
class SkippedSteps:
    """Optimizer steps that were not taken, the same on every rank."""

    total: int = 0
    """Those whose loss or gradient was not finite."""
    consecutive: int = 0
    """The last of them, without a good step between."""
    overflows: int = 0
    """Those that the loss scale of fp16 made overflow; it is lowered, and they are no sign of illness."""

    def count(self, *, finite_loss: bool, loss_scale: float, lowest_scale: float) -> bool:
        """Counts a step that was just skipped.

        Args:
            finite_loss: Whether its loss is finite.
            loss_scale: Its factor of the loss.
            lowest_scale: Where the loss scale cannot be lowered further; infinity without dynamic loss scaling.

        Returns:
            Whether it is an overflow that a lower scale may mend, rather than a step that counts towards the limit.
        """
        if finite_loss and loss_scale > lowest_scale:
            self.overflows += 1
            return True
        self.total += 1
        self.consecutive += 1
        return False

    def state_dict(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return asdict(self)


def spoiled_if_not_finite(loss: Tensor) -> Tensor:
    """The loss itself, or one whose every gradient is NaN where it is not finite.

    An infinite loss may have finite gradients; so the gradient's norm, which all ranks know, tells of every bad loss.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)


def non_finite_weight(model: nn.Module) -> str | None:
    """Name of the first parameter that is not finite; every rank must call it.

    Under ZeRO 3 each rank looks at its own part.
    """
    own = None
    for name, parameter in model.named_parameters():
        value = getattr(parameter, "ds_tensor", parameter.detach())
        if not bool(torch.isfinite(value).all()):
            own = name
            break
    return next((name for name in gather_objects(own) if name is not None), None)


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
        # Compiled blocks may not call hooks that came after their compilation.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    # All ranks have run the forward pass, which gathers parameters under ZeRO 3; what one found, all report.
    return next((name for name in gather_objects(found[0] if found else None) if name is not None), None)
