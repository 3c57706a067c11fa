"""Adapters by model class: a new transformer is a few lines in the catalogue."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn

from framer.features.adapters.base import Adapter
from framer.features.adapters.catalogue import LAYOUTS
from framer.features.adapters.layouts import TransformerLayout
from framer.features.adapters.structure import how_to_declare, recognise
from framer.features.adapters.transformer import TransformerAdapter
from framer.features.adapters.unet import UNetAdapter
from framer.features.adapters.video_catalogue import UNSUPPORTED, VIDEO_LAYOUTS
from framer.features.errors import UnsupportedModelError

__all__ = ["Adapter", "TransformerAdapter", "UNetAdapter", "adapter_for", "register_adapter", "register_layout"]

logger = logging.getLogger(__name__)

_ADAPTERS: dict[str, Callable[[nn.Module], Adapter]] = {}


def register_adapter(model_class: str, adapter: Callable[[nn.Module], Adapter]) -> None:
    """Declares the adapter of a model class and of its subclasses.

    Args:
        model_class: Name of the class, for example ``"SD3Transformer2DModel"``.
        adapter: The adapter's class; a later declaration replaces an earlier one.
    """
    _ADAPTERS[model_class] = adapter


def register_layout(model_class: str, layout: TransformerLayout) -> None:
    """Declares where a class of transformers, and its subclasses, keep their blocks and image tokens.

    Args:
        model_class: Name of the class, for example ``"SD3Transformer2DModel"``.
        layout: Where; a later declaration replaces an earlier one.
    """
    register_adapter(model_class, lambda model: TransformerAdapter(model, layout))


for _name, _layout in {**LAYOUTS, **VIDEO_LAYOUTS}.items():
    register_layout(_name, _layout)
for _name in ("UNet2DConditionModel", "UNet2DModel"):
    register_adapter(_name, UNetAdapter)


def adapter_for(model: nn.Module) -> Adapter:
    """Finds the model within its wrappers and gives the adapter of its class, or one that fits its structure.

    Args:
        model: A diffusers model, alone or within DeepSpeed's engine, ``DistributedDataParallel`` or
            ``torch.compile`` (wrappers that keep it as ``module`` or ``_orig_mod``).

    Returns:
        An adapter bound to the model itself.

    Raises:
        UnsupportedModelError: No class of the model, nor of what it wraps, has an adapter, and its structure leaves a
            doubt.
    """
    candidate: object = model
    chain: list[nn.Module] = []
    while isinstance(candidate, nn.Module):
        for cls in type(candidate).__mro__:
            if cls.__name__ in _ADAPTERS:
                return _ADAPTERS[cls.__name__](candidate)
            if cls.__name__ in UNSUPPORTED:
                raise UnsupportedModelError(f"FRAMER cannot be added to {cls.__name__}: {UNSUPPORTED[cls.__name__]}")
        chain.append(candidate)
        candidate = getattr(candidate, "_orig_mod", None) or getattr(candidate, "module", None)
    if chain and (recognised := recognise(chain[-1])) is not None:
        name = type(chain[-1]).__name__
        logger.info("%s is not known; its %d blocks were recognised by structure", name, len(recognised.blocks))
        return recognised
    got = " around ".join(type(module).__name__ for module in chain) if chain else type(model).__name__
    innermost = type(chain[-1]).__name__ if chain else "ModelClassName"
    raise UnsupportedModelError(f"FRAMER does not know where {got} keeps its feature maps. {how_to_declare(innermost)}")
