"""Launch configurations, fixed by shape, dtype and device alone: all ranks choose the same, and nothing is tuned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

TRANSFORM_TILE = 8192
"""Numbers in a tile of the transform: 32 registers a thread with 8 warps. The walk over the maps keeps two tiles, and
twice as much would spill."""

GRADIENT_TILE = 16384
"""Numbers in a tile of the gradients: 32 registers a thread with 16 warps. Twice as much would spill."""

LARGEST_SIDE = 64
"""Sides of maps that fit a tile."""


def lanes() -> int:
    """Threads of a warp."""
    return 64 if torch.version.hip else 32


def power_of_two(n: int, least: int = 16) -> int:
    """Smallest power of two that is at least both."""
    return max(least, 1 << (n - 1).bit_length())


@dataclass(frozen=True)
class TransformConfig:
    """One program transforms ``channels`` channels of one sample.

    Attributes:
        height: H, padded.
        width: W, padded.
        channels: Channels of a tile.
        num_warps: Warps of a program.
    """

    height: int
    width: int
    channels: int
    num_warps: int

    @classmethod
    def choose(cls, height: int, width: int) -> TransformConfig:
        """8 channels are one 16-byte load of bf16 tokens; larger maps must do with fewer."""
        # Half of the rows are cosines: matrix units want 16 of them.
        h, w = power_of_two(height, 32), power_of_two(width, 32)
        return cls(h, w, TRANSFORM_TILE // (h * w), 8)


@dataclass(frozen=True)
class GradientConfig:
    """One program writes ``channels`` channels of ``samples`` samples of one layer.

    Attributes:
        height: H, padded.
        width: W, padded.
        samples: Samples of a tile: the teacher is read once for all of them.
        channels: Channels of a tile.
        num_warps: Warps of a program.
    """

    height: int
    width: int
    samples: int
    channels: int
    num_warps: int

    @classmethod
    def choose(cls, height: int, width: int, batch: int) -> GradientConfig:
        """8 channels are one 16-byte load of bf16 tokens; what registers remain go to samples."""
        h, w = power_of_two(height), power_of_two(width)
        # Matrices of 64 columns need registers too.
        columns = min(32, (GRADIENT_TILE if max(h, w) <= 32 else GRADIENT_TILE // 2) // (h * w))
        channels = min(8, columns)
        samples = min(columns // channels, 1 << (batch - 1).bit_length())
        warps = 16 if h * w * samples * channels > GRADIENT_TILE // 2 else 8
        # 1024 threads of AMD's have 128 registers each, among 512 they have 256.
        return cls(h, w, samples, channels, min(warps, 512 // lanes()))


@dataclass(frozen=True)
class ProductConfig:
    """One program multiplies ``rows`` rows of students by ``targets`` targets over a part of the positions.

    Attributes:
        rows: Rows ``(layer, sample)`` of a tile.
        targets: Targets of a tile.
        inner: Numbers of each row read at a time.
        num_warps: Warps of a program.
        programs: Programs wanted in all, for each of 100 to 150 multiprocessors several.
    """

    rows: int
    targets: int
    inner: int
    num_warps: int
    programs: int

    @classmethod
    def choose(cls, rows: int, targets: int) -> ProductConfig:
        """Many rows, so that the high-passed teacher is read few times."""
        return cls(min(64, power_of_two(rows)), min(64, power_of_two(targets)), 64, 4, 1024)


@dataclass(frozen=True)
class TargetConfig:
    """Tile of the kernel that adds targets to gradients."""

    positions: int
    channels: int
    num_warps: int

    @classmethod
    def choose(cls, *, channels_last: bool) -> TargetConfig:
        """Long along the axis that is contiguous."""
        return cls(16, 64, 4) if channels_last else cls(64, 16, 4)


@dataclass(frozen=True)
class SumConfig:
    """Tile of the kernel that adds partial products: many parts at a time, or each would wait for memory by itself."""

    parts: int = 64
    outputs: int = 32
    num_warps: int = 4
