"""Projectors: small modules that train with the model, between a student's feature and what it learns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framer.alignment.encoders import ImageEncoder
from framer.config.distillation import FramerConfig
from framer.errors import ConfigError
from framer.features.adapters import adapter_for
from framer.features.errors import UnsupportedModelError
from framer.features.heads import attach, heads_of
from framer.features.selection import select_layers

METHODS = ("sra", "repa")
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
        return tokens.transpose(1, 2).unflatten(2, feature.shape[-2:])


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


class Projectors:
    """The projectors of a model's students.

    Args:
        model: The diffusers model itself.
        students: The students' numbers.

    Raises:
        ConfigError: The model has no projectors, or those of other students.
    """

    def __init__(self, model: nn.Module, students: Sequence[int]) -> None:
        heads, names = heads_of(model), [str(student) for student in students]
        if heads is None:
            raise ConfigError(
                f"{type(model).__name__} has no projectors: call framer.alignment.attach_projectors(model, config) "
                "before its optimizer or engine is made"
            )
        if sorted(heads) != sorted(names):
            raise ConfigError(
                f"the model's projectors are of the layers {', '.join(sorted(heads))}, and the students are "
                f"{', '.join(names)}: attach those of the same configuration"
            )
        self._projectors: tuple[nn.Module, ...] = tuple(heads[name] for name in names)

    def __call__(self, students: Sequence[Tensor], autocast_dtype: torch.dtype | None) -> list[Tensor]:
        """Each student's map through its projector.

        Args:
            students: Maps ``[B, C, h, w]``.
            autocast_dtype: The dtype to which the layers were autocast, for their maps may not have the dtype of the
                projectors' weights; None without autocast.
        """
        device = students[0].device.type
        with nullcontext() if autocast_dtype is None else torch.autocast(device, autocast_dtype):
            return [project(x) for project, x in zip(self._projectors, students, strict=True)]


def attach_projectors(
    model: nn.Module, config: FramerConfig, *, seed: int = 0, encoder: ImageEncoder | None = None
) -> None:
    """Gives the model the projectors of its students, as its ``framer_heads``; without effect on other methods.

    To be called before the optimizer or the distributed engine is made, which are to train them. The global random
    state stays as it was.

    Args:
        model: The diffusers model itself.
        config: Method, students, and the projectors' form.
        seed: Seed of their weights.
        encoder: What REPA's students learn from.

    Raises:
        ConfigError: Method ``repa`` without an encoder, wrong students, or the model has heads already.
        UnsupportedModelError: How many channels the model's layers have is not known.
    """
    if not config.enabled or config.method not in METHODS:
        return
    adapter = adapter_for(model)
    students = select_students(config, adapter.block_names)
    channels = hidden_channels(adapter.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = nn.ModuleDict({str(student): _projector(config, channels, encoder) for student in students})
    attach(adapter.model, heads)


def select_students(config: FramerConfig, names: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the students of ``sra`` or ``repa``.

    Raises:
        ConfigError: As :func:`framer.features.selection.select_layers`.
        UnsupportedModelError: As there.
    """
    teacher = config.sra.teacher_layer if config.method == "sra" else None
    return select_layers(names, config.students, teacher, fewest=1, own_pass=True).students


def hidden_channels(model: Any) -> int:
    """Channels of a transformer's tokens.

    Args:
        model: A diffusers transformer.

    Raises:
        UnsupportedModelError: Neither an attribute nor its config tells.
    """
    config: Any = getattr(model, "config", {})
    known = getattr(model, "inner_dim", None) or config.get("inner_dim") or config.get("hidden_size")
    if known is None and {"num_attention_heads", "attention_head_dim"} <= set(config):
        known = config["num_attention_heads"] * config["attention_head_dim"]
    if type(known) is not int:
        raise UnsupportedModelError(
            f"how many channels the layers of {type(model).__name__} have is not known: set model.inner_dim to it, or "
            "choose a method without projectors"
        )
    return known


def resized(projected: Tensor, like: Tensor) -> Tensor:
    """A projected map at the height and width of what it learns, bilinear where they differ."""
    if projected.shape[-2:] == like.shape[-2:]:
        return projected
    return F.interpolate(projected, size=like.shape[-2:], mode="bilinear", antialias=True)


def _projector(config: FramerConfig, channels: int, encoder: ImageEncoder | None) -> nn.Module:
    if config.method == "sra":
        return MlpProjector(channels, config.sra.projector_width or 2 * channels, channels)
    if encoder is None:
        raise ConfigError("method repa: pass the encoder to attach_projectors, whose channels the projectors must have")
    if config.repa.projector == "conv":
        return ConvProjector(channels, encoder.channels)
    return MlpProjector(channels, config.repa.projector_width or 2 * channels, encoder.channels)
