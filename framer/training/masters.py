"""Float32 master weights that DeepSpeed keeps whole: half precision without ZeRO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def whole_masters(engine: DeepSpeedEngine) -> list[tuple[list[nn.Parameter], list[Tensor]]]:
    """Parameters and their master weights, by group; empty where there are none or ZeRO partitions them."""
    optimizer = engine.optimizer
    if engine.zero_optimization() or not hasattr(optimizer, "fp16_groups"):
        return []
    groups = optimizer.fp32_groups if hasattr(optimizer, "fp32_groups") else optimizer.fp32_groups_flat
    return [
        (list(parameters), split_group(group, [parameter.shape for parameter in parameters]))
        for parameters, group in zip(optimizer.fp16_groups, groups, strict=True)
    ]


def split_group(group: Tensor | Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The master weights of one group, in the order of its parameters.

    Args:
        group: One flat tensor, or already one tensor a parameter, as DeepSpeed's optimizers differ in.
        shapes: Of the parameters.
    """
    if not isinstance(group, Tensor):
        return [part.detach() for part in group]
    parts = group.detach().split_with_sizes([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
