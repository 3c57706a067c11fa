"""Which parameters train, and which stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from framer.config.model import ModelConfig
from framer.errors import ConfigError
from framer.models.lora import lora_parameters, own_name

ATTENTION_PARAMETERS = ("transformer_blocks.*.attn.*", "transformer_blocks.*.attn2.*")
CONTROL_PARAMETERS = {"concat": ("pos_embed.proj.*",)}
"""Patterns of the parameters through which the low-resolution image enters, by ``model.conditioning``."""


def trainable_parameters(model: nn.Module, config: ModelConfig) -> frozenset[str]:
    """Names of the parameters that ``model.trainable`` selects; with LoRA those of adapters and ``lora.train_also``.

    Args:
        model: The transformer, with its adapters where it has any.
        config: Says which parameters train, and how the low-resolution image enters.

    Raises:
        ConfigError: A set or pattern matches no parameter, or one that has an adapter.
    """
    if config.lora is None:
        names = {name: name for name, _ in model.named_parameters()}
        return frozenset(_selected(names, config.trainable, config, key="model.trainable"))
    adapters = lora_parameters(model)
    names = {own_name(name): name for name, _ in model.named_parameters() if name not in adapters}
    also = _selected(names, config.lora.train_also, config, key="model.lora.train_also")
    adapted = sorted(own_name(name) for name in also if own_name(name) != name)
    if adapted:
        raise ConfigError(
            f"model.lora.train_also: {adapted[0]} is of a layer that has an adapter; leave that layer out of "
            "model.lora.target_modules, or out of train_also"
        )
    return adapters | also


def _selected(names: Mapping[str, str], entries: Sequence[str], config: ModelConfig, *, key: str) -> set[str]:
    """What the entries of a setting match.

    Args:
        names: Of the parameters, by the names that they had without adapters.
        entries: Sets and patterns.
        config: Says how the low-resolution image enters.
        key: The setting, for messages.
    """
    sets = {"all": ("*",), "attention": ATTENTION_PARAMETERS, "control": CONTROL_PARAMETERS[config.conditioning]}
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
        selected |= matched
    return selected


def freeze_the_rest(model: nn.Module, trainable: frozenset[str]) -> None:
    """Lets only the named parameters require gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
