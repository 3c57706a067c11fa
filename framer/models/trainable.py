"""Which parameters train, and which stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from framer.config.model import ModelConfig
from framer.errors import ConfigError
from framer.models.backbones import backbone_for
from framer.models.lora import lora_parameters, own_name


def trainable_parameters(model: nn.Module, config: ModelConfig) -> frozenset[str]:
    """Names of the parameters that ``model.trainable`` selects; with LoRA those of adapters and ``lora.train_also``.

    Args:
        model: The model, with its adapters where it has any.
        config: Says which parameters train.

    Raises:
        ConfigError: A set or pattern matches no parameter, one that has an adapter, or one that must stay as it is.
    """
    if config.lora is None:
        names = {name: name for name, _ in model.named_parameters()}
        return frozenset(_selected(names, config.trainable, model, config, key="model.trainable"))
    adapters = lora_parameters(model)
    names = {own_name(name): name for name, _ in model.named_parameters() if name not in adapters}
    also = _selected(names, config.lora.train_also, model, config, key="model.lora.train_also")
    adapted = sorted(own_name(name) for name in also if own_name(name) != name)
    if adapted:
        raise ConfigError(
            f"model.lora.train_also: {adapted[0]} is of a layer that has an adapter; leave that layer out of "
            "model.lora.target_modules, or out of train_also"
        )
    return adapters | also


def _selected(
    names: Mapping[str, str], entries: Sequence[str], model: nn.Module, config: ModelConfig, *, key: str
) -> set[str]:
    """What the entries of a setting match.

    Args:
        names: Of the parameters, by the names that they had without adapters.
        entries: Sets and patterns.
        model: The model.
        config: Says how the low-resolution image enters.
        key: The setting, for messages.
    """
    backbone = backbone_for(config)
    sets = {
        "all": ("*",),
        "attention": backbone.attention_parameters,
        "control": tuple(own_name(name) for name in backbone.control_parameter_names(model)),
    }
    selected: set[str] = set()
    for entry in entries:
        patterns = sets.get(entry, (entry,))
        matched = {present for name, present in names.items() if any(fnmatchcase(name, p) for p in patterns)}
        if not matched:
            first, *_, last = names
            raise ConfigError(
                f"{key}: '{entry}' matches none of the model's {len(names)} parameters, such as {first} and {last}; "
                f"expected {', '.join(sets)}, or a pattern of their names"
            )
        fixed = sorted(name for name in matched if not name.startswith(backbone.trained_part))
        if fixed:
            raise ConfigError(
                f"{key}: '{entry}' would train {fixed[0]}; with model.conditioning={config.conditioning} the model "
                f"itself stays as it is: set {key} to control, or to patterns of names that begin with "
                f"{backbone.trained_part}"
            )
        selected |= matched
    return selected


def freeze_the_rest(model: nn.Module, trainable: frozenset[str]) -> None:
    """Lets only the named parameters require gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
