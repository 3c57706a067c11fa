"""Which parameters train, and which stay as they are."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from framer.config.model import ModelConfig
from framer.errors import ConfigError

CONTROL_PARAMETERS = {"concat": ("pos_embed.proj.*",)}
"""Patterns of the parameters through which the low-resolution image enters, by ``model.conditioning``."""
ATTENTION_PARAMETERS = ("transformer_blocks.*.attn.*", "transformer_blocks.*.attn2.*")


def trainable_parameters(model: nn.Module, config: ModelConfig) -> frozenset[str]:
    """Names of the parameters that ``model.trainable`` selects.

    Args:
        model: The transformer.
        config: Says which parameters train, and how the low-resolution image enters.

    Raises:
        ConfigError: A pattern matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    if config.trainable == "all":
        return frozenset(names)
    if config.trainable == "attention":
        patterns: tuple[str, ...] = ATTENTION_PARAMETERS
        # Only models with dual attention layers have the second attention.
        selected = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
        return frozenset(selected)
    patterns = CONTROL_PARAMETERS[config.conditioning] if config.trainable == "control" else tuple(config.trainable)
    selected = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise ConfigError(
                f"model.trainable: the pattern '{pattern}' matches none of the model's {len(names)} parameters, such "
                f"as {names[0]} and {names[-1]}"
            )
        selected |= matched
    return frozenset(selected)


def freeze_the_rest(model: nn.Module, trainable: frozenset[str]) -> None:
    """Lets only the named parameters require gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
