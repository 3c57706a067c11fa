"""Floating-point operations of a training step, counted operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import framer_kernels  # noqa: F401 - declares its operators
from framer.config.training import TrainConfig
from framer.meta_model import META, crop_sizes, meta_model
from framer.models.meta_attention import fused_attention
from framer.models.restoration_model import RestorationModel

aten = torch.ops.aten


def attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Operations of the two matrix products of attention, 2 a multiplication and addition.

    Args:
        query: ``[B, heads, Q, E]``.
        key: ``[B, heads, K, E]``.
        value: ``[B, heads, K, V]``.
    """
    batch, heads, queries, width = query.shape
    return 2 * batch * heads * queries * key.shape[2] * (width + value.shape[3])


def attention_backward_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Operations of attention's gradient: five products, for the scores are computed again; as torch counts it."""
    batch, heads, queries, width = query.shape
    return 2 * batch * heads * queries * key.shape[2] * (3 * width + 2 * value.shape[3])


# torch counts CUDA's operators alone; elsewhere the same attention has operators of other names.
_ATTENTION_ON_CPUS: Final[Mapping[Any, Callable[..., int]]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: attention_flops(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, q, k, v, *__, **___: attention_backward_flops(
        q, k, v
    ),
}
_FORMULAS: Final[Mapping[Any, Callable[..., int]]] = {**flop_registry, **_ATTENTION_ON_CPUS}


def contrastive_loss_flops(maps: Sequence[Tensor], teacher: Tensor) -> int:
    """Operations of FRAMER's loss: of each element ``2 (H + W)`` to transform it, ``2 B`` for products with B teachers.

    Args:
        maps: The students, ``[B, C, H, W]`` each.
        teacher: ``[B, C, H, W]``.
    """
    batch, _, height, width = teacher.shape
    transforms = (len(maps) + 1) * 2 * (height + width)
    return teacher.numel() * (transforms + len(maps) * 2 * batch)


def contrastive_loss_backward_flops(maps: Sequence[Tensor], teacher: Tensor, needed: Sequence[int]) -> int:
    """Operations of its gradient: transforms there and, for maps that need one, back, and as many products."""
    batch, _, height, width = teacher.shape
    transforms = (len(maps) + 1 + len(needed)) * 2 * (height + width)
    return teacher.numel() * (transforms + len(needed) * 2 * batch)


def operator_flops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """Operations of one call of an operator: matrix products, convolutions, attention and FRAMER's loss; else 0."""
    packet = func.overloadpacket
    if packet is torch.ops.framer_kernels.contrastive_loss:
        return contrastive_loss_flops(args[0], args[1])
    if packet is torch.ops.framer_kernels.contrastive_loss_backward:
        return contrastive_loss_backward_flops(args[1], args[2], args[5])
    if packet in _ATTENTION_ON_CPUS:
        return _ATTENTION_ON_CPUS[packet](*args, **kwargs)
    formula = _FORMULAS.get(packet)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up :func:`operator_flops` of everything that runs inside.

    Attributes:
        total: Operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.total += operator_flops(func, args, kwargs, result)
        return result


def model_flops_per_sample(config: TrainConfig) -> float:
    """Floating-point operations of the transformer's forward and backward pass for one sample.

    As model FLOPs utilisation defines it (PaLM, arXiv 2204.02311, appendix B): without what is computed again in the
    backward pass, by activation checkpointing or within attention, and without the loss. All parameters count as
    trained, so that runs compare whatever ``model.trainable`` says. With ``data.buckets`` the mean over them. Takes
    seconds, no memory for weights and no GPU.

    Raises:
        UserError: ``model.pretrained`` names a folder whose architecture cannot be read.
    """
    model = meta_model(config)
    restoration, sizes = RestorationModel(model, config.model, META), crop_sizes(config.data)
    shape = restoration.latents.shape
    with torch.no_grad(), fused_attention(), FlopCounter() as counter:
        for size in sizes:
            height, width = (side // shape.downscale for side in size)
            with META:
                sample = torch.empty(1, shape.channels, height, width)
                reference = torch.empty(1, shape.reference_channels, height, width)
                inputs = restoration.inputs(sample, reference, torch.empty(1))
            model(**inputs)
    # Of a matrix product, the gradients of its two factors are two products of its size.
    return 3.0 * float(counter.total) / len(sizes)
