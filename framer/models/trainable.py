"""Which parameters train, and which stay as they are."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from framer.config.model import ModelConfig
from framer.errors import ConfigError
from framer.models.backbones import backbone_for


def trainable_parameters(model: nn.Module, config: ModelConfig) -> frozenset[str]:
    """Names of the parameters that ``model.trainable`` selects.

    Args:
        model: The model.
        config: Says which parameters train.

    Raises:
        ConfigError: A set or pattern matches no parameter.
    """
    backbone = backbone_for(config)
    names = [name for name, _ in model.named_parameters()]
    sets = {
        "all": ("*",),
        "attention": backbone.attention_parameters,
        "control": tuple(backbone.control_parameter_names(model)),
    }
    selected: set[str] = set()
    for entry in config.trainable:
        patterns = sets.get(entry, (entry,))
        matched = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
        if not matched:
            raise ConfigError(
                f"model.trainable: '{entry}' matches none of the model's {len(names)} parameters, such as {names[0]} "
                f"and {names[-1]}; expected {', '.join(sets)}, or a pattern of their names"
            )
        selected |= matched
    return frozenset(selected)


def freeze_the_rest(model: nn.Module, trainable: frozenset[str]) -> None:
    """Lets only the named parameters require gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
