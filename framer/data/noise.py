"""The noise of the degradation: fields of a drawn law and strength, from a stream of numbers or from a seed.

Both sources have the same law. They differ in what a field depends on. Out of a stream, Poisson counts consume as
many numbers as the image asks for, which is how `degrade` has drawn them from the start. Out of a seed, each value of
the image meets the number that belongs to its place, so that images that differ by rounding errors get fields that
differ by rounding errors: two implementations of the degradation can be compared, and the device does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from framer.data.levels import from_bytes
from framer.extras import require

NoiseKind = Literal["gaussian", "poisson"]
Bytes = npt.NDArray[np.uint8]
Shape = tuple[int, int, int]

_PHOTONS = 256.0
_LEVELS = 256
_BUCKETS = 256
# Twelve standard deviations above the mean count at white, beyond which no probability is left in 64 bits.
_MOST_PHOTONS = 448


@dataclass(frozen=True)
class NoiseDraw:
    """Which noise is added.

    Attributes:
        kind: Gaussian, or Poisson.
        gray: Whether all channels get the same noise.
        strength: The standard deviation of Gaussian noise in units of 1/255; the factor on Poisson noise.
        source: Seed of the field; or the state that the generator was in when `degrade` drew the field from it.
    """

    kind: NoiseKind
    gray: bool
    strength: float
    source: int | Mapping[str, Any]


class NoiseSource(Protocol):
    """Where the values of a field come from."""

    def normal(self, shape: Shape) -> npt.NDArray[np.float32]:
        """Values of mean 0 and standard deviation 1."""

    def photons(self, signal: Bytes) -> npt.NDArray[np.int64]:
        """Poisson counts of the mean that each level of the signal stands for, 256 at white."""


class StreamNoise:
    """Noise out of a generator, which moves on by as many numbers as the field takes."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def normal(self, shape: Shape) -> npt.NDArray[np.float32]:
        """Standard normal values."""
        return self._rng.standard_normal(shape, dtype=np.float32)

    def photons(self, signal: Bytes) -> npt.NDArray[np.int64]:
        """Counts drawn one after the other."""
        return self._rng.poisson(signal * (_PHOTONS / 255.0))


class SeededNoise:
    """Noise out of a seed: the count at a place depends on the seed and on the signal there alone."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def normal(self, shape: Shape) -> npt.NDArray[np.float32]:
        """Standard normal values."""
        return self._rng.standard_normal(shape, dtype=np.float32)

    def photons(self, signal: Bytes) -> npt.NDArray[np.int64]:
        """Counts by the inverse of the distribution function: the smallest that a uniform number stays below."""
        tables = _photon_tables()
        uniform = self._rng.random(signal.size)
        level = signal.reshape(-1).astype(np.int64)
        counts = tables.first[level * _BUCKETS + (uniform * _BUCKETS).astype(np.int64)]
        below = tables.distribution
        pending = np.flatnonzero(below[level * _MOST_PHOTONS + counts] <= uniform)
        while pending.size:
            counts[pending] += 1
            pending = pending[below[level[pending] * _MOST_PHOTONS + counts[pending]] <= uniform[pending]]
        return counts.reshape(signal.shape)


class _PhotonTables(NamedTuple):
    distribution: npt.NDArray[np.float64]
    """``float64 [levels * counts]``: the probability of at most so many photons at a level."""
    first: npt.NDArray[np.int64]
    """``int64 [levels * buckets]``: the count of the smallest uniform number in each bucket."""


@lru_cache(maxsize=1)
def _photon_tables() -> _PhotonTables:
    special = require("scipy.special", extra="train")
    means = np.arange(_LEVELS) * (_PHOTONS / 255.0)
    distribution = special.pdtr(np.arange(_MOST_PHOTONS)[None, :], means[:, None])
    distribution[:, -1] = np.inf
    edges = np.arange(_BUCKETS) / _BUCKETS
    first = np.stack([np.searchsorted(row, edges, side="right") for row in distribution])
    return _PhotonTables(distribution.reshape(-1), first.reshape(-1))


def noise_of(draw: NoiseDraw) -> NoiseSource:
    """The source that a draw names."""
    if isinstance(draw.source, int):
        return SeededNoise(draw.source)
    bit_generator = getattr(np.random, draw.source["bit_generator"])(0)
    bit_generator.state = draw.source
    return StreamNoise(np.random.Generator(bit_generator))


def noise_field(
    draw: NoiseDraw, size: tuple[int, int], signal: Callable[[], Bytes], source: NoiseSource
) -> npt.NDArray[np.float32]:
    """Makes the field that is added to an image.

    Poisson noise is the shot noise of a sensor that counts 256 photons at white. The published recipes take the number
    of distinct 8-bit values in the image, rounded up to a power of two. That is 256 on most large crops, but a
    few on a small crop of plain sky, where the noise then drowns the picture. The constant keeps the noise
    independent of how large a crop is cut.

    Args:
        draw: Kind and strength.
        size: Height and width of the image.
        signal: Gives the image, grey where the noise is, ``uint8 [H, W, 1 or 3]``; called for Poisson noise only.
            It is rounded to 8 bits, as a sensor's output is, which also removes what a resize has overshot.
        source: Where the values come from.

    Returns:
        ``float32 [H, W, 1]`` where the noise is the same in all channels, ``[H, W, 3]`` otherwise.
    """
    if draw.kind == "gaussian":
        return np.float32(draw.strength / 255.0) * source.normal((*size, 1 if draw.gray else 3))
    levels = signal()
    counts = source.photons(levels)
    field: npt.NDArray[np.float32] = (counts / _PHOTONS).astype(np.float32) - from_bytes(levels)
    return np.float32(draw.strength) * field
