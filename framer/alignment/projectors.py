"""Projectors: small modules that train with the model, between a student's feature and what it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framer.alignment.encoders import ImageEncoder
from framer.alignment.layers import method_layers
from framer.config.distillation import FramerConfig
from framer.errors import ConfigError
from framer.features.adapters import Adapter, adapter_for
from framer.features.errors import UnsupportedModelError
from framer.features.heads import HEADS

WITH_PROJECTORS: Final = ("sra", "repa")
"""Methods whose students pass a projector."""


class MlpProjector(nn.Module):
    """Three linear layers with SiLU between them, on each token.

    Args:
        channels: C of the student's map.
        width: Hidden channels.
        out_channels: Z of what it learns.
    """

    def __init__(self, channels: int, width: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out_channels)
        )

    def forward(self, feature: Tensor) -> Tensor:
        """A map ``[B, C, h, w]`` as ``[B, Z, h, w]``."""
        tokens: Tensor = self.layers(feature.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(len(feature), -1, *feature.shape[-2:])


class ConvProjector(nn.Module):
    """One 3x3 convolution, which keeps how tokens lie to each other.

    Args:
        channels: C of the student's map.
        out_channels: Z of what it learns.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, feature: Tensor) -> Tensor:
        """A map ``[B, C, h, w]`` as ``[B, Z, h, w]``."""
        projected: Tensor = self.convolution(feature)
        return projected


class Projectors(nn.ModuleDict):
    """The projectors of a model's students, by the students' numbers."""

    def project(self, numbers: Sequence[int], students: Sequence[Tensor]) -> list[Tensor]:
        """Each student's map through its projector.

        Args:
            numbers: The students' numbers.
            students: Their maps ``[B, C, h, w]``, of the dtype of the weights or under autocast.
        """
        return [self[str(number)](x) for number, x in zip(numbers, students, strict=True)]


def attach_projectors(
    model: nn.Module, config: FramerConfig, *, seed: int = 0, encoder: ImageEncoder | None = None
) -> None:
    """Gives the model the projectors of its students, as its ``framer_heads``; without effect on other methods.

    To be called before the optimizer or the distributed engine is made, which are to train them.
    ``framer.features.detach_heads`` and ``heads_set_aside`` remove them for what is saved. The global random state
    stays as it was.

    Args:
        model: The diffusers model itself.
        config: Method, students, and the projectors' form.
        seed: Seed of their weights.
        encoder: What REPA's students learn from.

    Raises:
        ConfigError: Method ``repa`` without an encoder, wrong students, or the model has heads already.
        UnsupportedModelError: How many channels the model's layers have is not known.
    """
    if not config.enabled or config.method not in WITH_PROJECTORS:
        return
    adapter = adapter_for(model)
    if hasattr(adapter.model, HEADS):
        raise ConfigError(
            f"{type(adapter.model).__name__} has heads already ({HEADS}); remove them first: "
            "framer.features.detach_heads(model)"
        )
    students, teacher = method_layers(config, adapter.block_names)
    channels = layer_channels(adapter)
    heads = Projectors()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for student in students:
            target = _target_channels(channels, teacher, encoder)
            heads[str(student)] = _projector(config, channels[student], target)
    like = next(adapter.model.parameters())
    adapter.model.add_module(HEADS, heads.to(device=like.device, dtype=like.dtype))


def projectors_of(model: nn.Module, students: Sequence[int]) -> Projectors:
    """The projectors that are attached to a model.

    Args:
        model: The diffusers model itself.
        students: The students' numbers.

    Raises:
        ConfigError: There are none, or those of other students.
    """
    heads, names = getattr(model, HEADS, None), [str(student) for student in students]
    if not isinstance(heads, Projectors):
        raise ConfigError(
            f"{type(model).__name__} has no projectors: call framer.alignment.attach_projectors(model, config) before "
            "its optimizer or engine is made"
        )
    if sorted(heads) != sorted(names):
        raise ConfigError(
            f"the model's projectors are of the layers {', '.join(heads)}, and the students are {', '.join(names)}: "
            "attach those of the same configuration"
        )
    return heads


def layer_channels(adapter: Adapter) -> tuple[int, ...]:
    """Channels of every layer's map.

    Raises:
        UnsupportedModelError: Neither the adapter, nor an attribute of the model, nor its config tells.
    """
    if adapter.channels is not None:
        return adapter.channels
    model = adapter.model
    config: Any = getattr(model, "config", {})
    known = getattr(model, "inner_dim", None) or config.get("inner_dim") or config.get("hidden_size")
    if known is None and {"num_attention_heads", "attention_head_dim"} <= set(config):
        known = config["num_attention_heads"] * config["attention_head_dim"]
    if type(known) is not int:
        raise UnsupportedModelError(
            f"how many channels the layers of {type(model).__name__} have is not known: set model.inner_dim to it, or "
            "choose a method without projectors"
        )
    return (known,) * len(adapter.blocks)


def resized(projected: Tensor, like: Tensor) -> Tensor:
    """A projected map at the height and width of what it learns, bilinear where they differ."""
    if projected.shape[-2:] == like.shape[-2:]:
        return projected
    return F.interpolate(projected, size=like.shape[-2:], mode="bilinear", antialias=True)


def _target_channels(channels: Sequence[int], teacher: int | None, encoder: ImageEncoder | None) -> int:
    if teacher is not None:
        return channels[teacher]
    if encoder is None:
        raise ConfigError("method repa: pass the encoder to attach_projectors, whose channels the projectors must have")
    return encoder.channels


def _projector(config: FramerConfig, channels: int, target: int) -> nn.Module:
    if config.method == "repa" and config.repa.projector == "conv":
        return ConvProjector(channels, target)
    settings = config.sra if config.method == "sra" else config.repa
    return MlpProjector(channels, settings.projector_width or 2 * channels, target)
