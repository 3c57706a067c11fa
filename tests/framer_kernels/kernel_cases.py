"""Features and settings that the tests of `framer_kernels` share; importable by spawned processes."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from framer_kernels import BandSplit, Representation

NEGATIVES = [1, 2, 3, 0]


class Definition(TypedDict):
    bands: BandSplit
    representation: Representation


DEFINITIONS: dict[str, Definition] = {
    "radial-complex": {"bands": BandSplit.radial(0.25), "representation": "complex"},
    "radial-magnitude": {"bands": BandSplit.radial(0.25), "representation": "magnitude"},
    "quantile-complex": {"bands": BandSplit.quantile(0.2), "representation": "complex"},
    "quantile-magnitude": {"bands": BandSplit.quantile(0.2), "representation": "magnitude"},
}


def closed_form(layers: int = 5, batch: int = 3, channels: int = 4, height: int = 16, width: int = 16) -> Tensor:
    """The features of the golden numbers, ``[layers, B, C, H, W]`` float64; all indices count from 1."""
    ranges = [torch.arange(1, n + 1, dtype=torch.float64) for n in (layers, batch, channels, height, width)]
    n, b, c, h, w = torch.meshgrid(*ranges, indexing="ij")
    return (
        torch.sin(0.37 * n * h + 0.11 * b * w + 0.7 * c)
        + 0.3 * torch.cos(0.05 * h * w * n + b * c)
        + 0.2 * torch.sin(1.9 * h + 2.3 * w * b + 0.13 * n * c)
    )


def small_features(layers: int = 5, batch: int = 2, channels: int = 2, height: int = 5, width: int = 6) -> list[Tensor]:
    """Tiny generic float64 maps; the last one is the teacher, which all others resemble a little."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, height, width)
    teacher = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(layers - 1)]
    return [*(0.6 * teacher + x for x in noise), teacher]
