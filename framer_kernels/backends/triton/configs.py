"""Launch configurations, fixed by shape, dtype and device alone: all ranks choose the same, and nothing is tuned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

COMPILER = {"enable_fp_fusion": True}
"""Said at every launch, for Triton's default changes with its version."""

LARGEST_SIDE = 64
"""Sides of maps that fit a tile."""


def warps(threads: int) -> int:
    """Warps of that many threads; AMD's are of 64."""
    return threads // (64 if torch.version.hip else 32)


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
    def choose(cls, height: int, width: int, precision: str) -> TransformConfig:
        """8 channels are 16 bytes of bf16 tokens; larger maps must do with fewer."""
        # Half of the rows are cosines: matrix units want 16 of them.
        h, w = power_of_two(height, 32), power_of_two(width, 32)
        # A map's coefficients and its neighbour's are kept, in 32 registers a thread each.
        channels = min(8, 8192 // (h * w))
        if precision == "ieee":
            # Products without matrix units hold both factors in registers.
            channels = max(1, channels // 2)
        return cls(h, w, channels, warps(256))


@dataclass(frozen=True)
class StatisticsConfig:
    """One program measures ``channels`` channels of one sample of many maps, in some rows of their quadrants.

    Attributes:
        height: H, padded.
        width: W, padded.
        rows: Rows of the maps that are read at a time.
        frequencies: Rows of each quadrant.
        channels: Channels of a tile.
        num_warps: Warps of a program.
    """

    height: int
    width: int
    rows: int
    frequencies: int
    channels: int
    num_warps: int

    @classmethod
    def choose(cls, height: int, width: int, item_size: int, precision: str) -> StatisticsConfig:
        """Channels are at least 16 bytes of tokens; of larger maps a program takes fewer frequencies."""
        # Half of the rows are cosines: matrix units want 16 of them.
        h, w = power_of_two(height, 32), power_of_two(width, 32)
        if precision == "ieee":
            # Products without matrix units hold both factors in registers.
            return cls(h, w, 16, 16, 128 // w, warps(256))
        # A map's four quadrants and its neighbour's are kept, in 128 registers a thread: the fewer warps, the less
        # often the matrices are read from shared memory.
        rows = 32 if w == 32 and item_size == 2 else 16
        return cls(h, w, rows, 16, 4 if w == 64 and item_size == 4 else 8, warps(4 * w))


@dataclass(frozen=True)
class GradientConfig:
    """One program writes ``channels`` channels of ``samples`` samples of one layer, ``rows`` rows of them at a time.

    Attributes:
        rows: Rows of the maps in a tile.
        samples: Samples of a tile: the teacher is read once for all of them.
        channels: Channels of a tile.
        num_warps: Warps of a program.
    """

    rows: int
    samples: int
    channels: int
    num_warps: int

    @classmethod
    def choose(
        cls, padded_width: int, low_coefficients: int, batch: int, item_size: int, precision: str
    ) -> GradientConfig:
        """As many numbers as registers hold: 32 bytes of channels fill whole sectors of tokens, then samples.

        Args:
            padded_width: W, padded.
            low_coefficients: Low coefficients of a map, padded.
            batch: Samples.
            item_size: Bytes of a number of the maps.
            precision: Of the products.
        """
        rows = 16
        # 64 registers a thread for a tile, half as many for its low coefficients.
        tile = 16384
        if item_size == 4 or padded_width > 32 or torch.version.hip:
            # Numbers of 4 bytes take twice the registers while they are loaded, and longer rows of a matrix take
            # more of them; AMD has 64 KB to change a tile's layout.
            tile //= 2
        low_tile = 8192 if padded_width > 16 else 4096
        if precision == "ieee":
            # Products without matrix units hold both factors in registers.
            tile = low_tile = 4096
        columns = max(1, min(tile // (rows * padded_width), low_tile // low_coefficients))
        channels = min(32 // item_size, columns)
        samples = min(4, columns // channels, power_of_two(batch, 1))
        return cls(rows, samples, channels, warps(256))


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
        """Many rows, so that the high-passed teacher is read few times; few of them need few numbers in flight."""
        tile = min(64, power_of_two(rows))
        return cls(tile, min(64, power_of_two(targets)), 32 if tile == 16 else 64, warps(128), 1024)


@dataclass(frozen=True)
class SumConfig:
    """Tile of the kernel that sums parts: many parts at a time, for there are few results."""

    results: int
    parts: int
    num_warps: int

    @classmethod
    def choose(cls) -> SumConfig:
        """A few numbers of each thread in flight."""
        return cls(64, 32, warps(128))


@dataclass(frozen=True)
class TargetConfig:
    """Tile of the kernel that adds targets to gradients."""

    positions: int
    channels: int
    num_warps: int

    @classmethod
    def choose(cls, *, channels_last: bool) -> TargetConfig:
        """Long along the axis that is contiguous."""
        return cls(32, 64, warps(128)) if channels_last else cls(64, 32, warps(128))
