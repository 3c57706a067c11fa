"""Adapters by model class: a new family is one file here and one line in the registry."""

from __future__ import annotations

from torch import nn

from framer.features.adapters.base import Adapter
from framer.features.adapters.sd3 import SD3Adapter
from framer.features.adapters.sd3_control_stream import SD3ControlStreamAdapter
from framer.features.errors import UnsupportedModelError

__all__ = ["Adapter", "SD3Adapter", "SD3ControlStreamAdapter", "adapter_for", "register_adapter"]

# By name: importing every diffusers model to compare classes would cost seconds at start.
_ADAPTERS: dict[str, type[Adapter]] = {
    "SD3ControlStreamTransformer2DModel": SD3ControlStreamAdapter,
    "SD3Transformer2DModel": SD3Adapter,
}


def register_adapter(model_class: str, adapter: type[Adapter]) -> None:
    """Declares the adapter of a model class and of its subclasses.

    Args:
        model_class: Name of the class, for example ``"SD3Transformer2DModel"``.
        adapter: The adapter's class; a later declaration replaces an earlier one.
    """
    _ADAPTERS[model_class] = adapter


def adapter_for(model: nn.Module) -> Adapter:
    """Finds the model within its wrappers and gives the adapter of its class.

    Args:
        model: A diffusers model, alone or within DeepSpeed's engine, ``DistributedDataParallel`` or
            ``torch.compile`` (wrappers that keep it as ``module`` or ``_orig_mod``).

    Returns:
        An adapter bound to the model itself.

    Raises:
        UnsupportedModelError: No class of the model, nor of what it wraps, has an adapter.
    """
    candidate: object = model
    chain: list[str] = []
    while isinstance(candidate, nn.Module):
        for cls in type(candidate).__mro__:
            if cls.__name__ in _ADAPTERS:
                return _ADAPTERS[cls.__name__](candidate)
        chain.append(type(candidate).__name__)
        candidate = getattr(candidate, "_orig_mod", None) or getattr(candidate, "module", None)
    got = " around ".join(chain) if chain else type(model).__name__
    raise UnsupportedModelError(
        f"FRAMER has no adapter for {got}. Known model classes: {', '.join(sorted(_ADAPTERS))}. For another "
        "one, subclass framer.features.Adapter and declare it with "
        "framer.features.register_adapter('ModelClassName', YourAdapter)."
    )
