"""LoRA through peft: low-rank adapters beside a model's own layers, in named sets.

A set is the adapters of one name. Several sets can lie on the same layers; each can be active or not, and train or not.
A layer with an adapter keeps its own parameters one level deeper, as ``base_layer``: :func:`own_name` says what they
were called before.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from framer.config.lora import LoraConfig
from framer.errors import ConfigError
from framer.extras import require
from framer.models.attention import attention_modules
from framer.seeding import derived_seed

DEFAULT_ADAPTER: Final = "default"
LORA_FILE: Final = "pytorch_lora_weights.safetensors"
_METADATA_KEY: Final = "lora_adapter_metadata"
_FACTORS: Final = ("lora_A", "lora_B")


def add_lora(
    model: nn.Module, config: LoraConfig, *, seed: int, adapter_name: str = DEFAULT_ADAPTER
) -> tuple[nn.Module, ...]:
    """Adds a set of adapters, with which the model computes what it computed before, and lets this set alone train.

    Sets that the model has already stay as they are, active and frozen. The global random state stays as it was.

    Args:
        model: On any device; linear layers may be partitioned already, convolutions not. Changed in place.
        config: Which layers, and what adapters.
        seed: Of the first factors; the set's name counts too.
        adapter_name: Of the new set, without dots.

    Returns:
        The new modules with parameters, in the model's order, in the dtype and on the device of the layers.

    Raises:
        ConfigError: An entry of ``target_modules`` matches no layer that can have an adapter.
        MissingExtraError: peft is not installed.
        ValueError: The model has a set of this name.
    """
    earlier = lora_adapters(model)
    if adapter_name in earlier:
        raise ValueError(f"the model has adapters named '{adapter_name}' already")
    settings = require("peft", extra="lora").LoraConfig(
        r=config.rank,
        lora_alpha=_alpha(config),
        lora_dropout=config.dropout,
        target_modules=lora_targets(model, config),
        init_lora_weights=config.init,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(derived_seed(seed, "lora", adapter_name))
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        require("peft", extra="lora").inject_adapter_in_model(settings, model, adapter_name)
    activate_lora(model, *earlier, adapter_name)
    new = lora_parameters(model, adapter_name)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in new)
    return tuple(
        getattr(layer, factor)[adapter_name]
        for layer in _lora_layers(model).values()
        for factor in _FACTORS
        if adapter_name in getattr(layer, factor)
    )


def lora_targets(model: nn.Module, config: LoraConfig) -> list[str]:
    """Names of the layers that ``target_modules`` selects; by default the linear layers of attention.

    Convolutions in groups, depthwise ones among them, have no adapters: peft cannot merge theirs.

    Args:
        model: With or without adapters.
        config: The selection.

    Raises:
        ConfigError: An entry matches no linear layer or convolution, or the model has no attention.
    """
    factors = {
        module for layer in _lora_layers(model).values() for key in _FACTORS for module in getattr(layer, key).values()
    }
    layers = {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if module not in factors
        and (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
    }
    if config.target_modules is None:
        within = tuple(f"{name}." for name in attention_modules(model))
        found = [name for name, layer in layers.items() if name.startswith(within) and isinstance(layer, nn.Linear)]
        if not found:
            raise ConfigError(
                f"model.lora.target_modules: {type(model).__name__} has no linear layers of attention, which null "
                f"stands for; name some of its layers, such as {_examples(list(layers))}"
            )
        return found
    selected: set[str] = set()
    for entry in config.target_modules:
        matched = {name for name in layers if f".{name}".endswith(f".{entry}") or fnmatchcase(name, entry)}
        if not matched:
            raise ConfigError(
                f"model.lora.target_modules: '{entry}' matches none of the model's {len(layers)} linear layers and "
                f"convolutions, such as {_examples(list(layers))}; expected the end of a name, such as to_q, or a "
                "pattern of whole names, such as transformer_blocks.*.attn.*"
            )
        selected |= matched
    return [name for name in layers if name in selected]


def lora_adapters(model: nn.Module) -> tuple[str, ...]:
    """Names of the model's sets of adapters, in the order in which they were added."""
    return tuple(getattr(model, "peft_config", {}))


def lora_parameters(model: nn.Module, *adapter_names: str) -> frozenset[str]:
    """Names of the parameters of some sets of adapters; of all sets where none is named.

    Raises:
        ValueError: The model has no such set.
    """
    _check_names(model, adapter_names)
    return frozenset(
        f"{name}.{factor}.{adapter}.{key}"
        for name, layer in _lora_layers(model).items()
        for factor in _FACTORS
        for adapter in adapter_names or lora_adapters(model)
        if adapter in getattr(layer, factor)
        for key, _ in getattr(layer, factor)[adapter].named_parameters()
    )


def own_name(name: str) -> str:
    """What a parameter of the model itself was called before its layer got an adapter."""
    return name.replace(".base_layer.", ".")


def activate_lora(model: nn.Module, *adapter_names: str) -> None:
    """Lets these sets of adapters, and no others, count in the forward pass; what trains stays as it is.

    Args:
        model: With adapters.
        adapter_names: None at all: the model computes without adapters.

    Raises:
        ValueError: The model has no such set.
    """
    _check_names(model, adapter_names)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for layer in _lora_layers(model).values():
        layer.enable_adapters(bool(adapter_names))
        if adapter_names:
            layer.set_adapter(list(adapter_names))
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def freeze_lora(model: nn.Module, *adapter_names: str) -> None:
    """Stops these sets of adapters from training; they stay active.

    Raises:
        ValueError: The model has no such set.
    """
    _require_grad(model, adapter_names, False)


def train_lora(model: nn.Module, *adapter_names: str) -> None:
    """Lets these sets of adapters train, beside what trains already.

    Raises:
        ValueError: The model has no such set.
    """
    _require_grad(model, adapter_names, True)


@torch.no_grad()
def merged_weights(model: nn.Module, weights: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """A model's weights with its adapters added into them, under the names of a model without adapters.

    Sums are made in float32 and left in it; other weights stay as they are.

    Args:
        model: On the device ``meta``, without adapters; gets them.
        weights: All parameters and persistent buffers of the model with the adapters of ``config``.
        config: The adapters.
    """
    add_lora(model, config, seed=0)
    model.load_state_dict(dict(weights), assign=True, strict=True)
    adapters = lora_parameters(model)
    merged = {own_name(name): value for name, value in weights.items() if name not in adapters}
    for name, layer in _lora_layers(model).items():
        own = merged[f"{name}.weight"]
        merged[f"{name}.weight"] = own.float() + layer.get_delta_weight(DEFAULT_ADAPTER).float()
    return merged


def write_lora(
    folder: Path, weights: Mapping[str, Tensor], config: LoraConfig, *, model_class: str, dtype: torch.dtype
) -> None:
    """Writes adapters as diffusers' ``load_lora_adapter`` and its pipelines' ``load_lora_weights`` read them.

    Args:
        folder: Made.
        weights: Of the model with adapters; others than the adapters' are left out.
        config: The adapters.
        model_class: Name of the model's class, which says what pipelines call the model.
        dtype: Of what is written.

    Raises:
        OSError: The folder cannot be written to.
    """
    prefix = "unet" if model_class.startswith("UNet") else "transformer"
    adapters: dict[str, Tensor] = {}
    layers: dict[str, None] = {}
    for name, value in weights.items():
        layer, *rest = name.rsplit(".", 3)
        if len(rest) == 3 and rest[0] in _FACTORS and rest[1] == DEFAULT_ADAPTER:
            adapters[f"{prefix}.{layer}.{rest[0]}.{rest[2]}"] = value.to(dtype).contiguous()
            layers[layer] = None
    # Without these, readers take the rank for alpha.
    settings = {"r": config.rank, "lora_alpha": _alpha(config), "target_modules": list(layers)}
    metadata = json.dumps({f"{prefix}.{key}": value for key, value in settings.items()})
    folder.mkdir(parents=True)
    save_file(adapters, folder / LORA_FILE, metadata={"format": "pt", _METADATA_KEY: metadata})


def _alpha(config: LoraConfig) -> float:
    return config.rank if config.alpha is None else config.alpha


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    if not lora_adapters(model):
        return {}
    kind = require("peft.tuners.lora", extra="lora").LoraLayer
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def _check_names(model: nn.Module, adapter_names: tuple[str, ...]) -> None:
    present = lora_adapters(model)
    unknown = [name for name in adapter_names if name not in present]
    if unknown:
        raise ValueError(f"the model has no adapters named '{unknown[0]}'; it has {', '.join(present) or 'none'}")


def _require_grad(model: nn.Module, adapter_names: tuple[str, ...], value: bool) -> None:
    names = lora_parameters(model, *adapter_names)
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(value)


def _examples(names: list[str]) -> str:
    return ", ".join(names[:: max(len(names) // 3, 1)][:3])
