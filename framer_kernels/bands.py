"""Which frequencies are low and which are high."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from framer_kernels.types import BandKind


@dataclass(frozen=True)
class BandSplit:
    """A division of the 2-D spectrum into a low (LF) and a high (HF) band; every bin is in exactly one.

    Build it with `BandSplit.radial` or `BandSplit.quantile`.

    Attributes:
        kind: ``radial`` or ``quantile``.
        value: The cutoff of ``radial`` (1.0 is Nyquist), or the fraction of ``quantile``.

    Raises:
        ValueError: The kind is unknown, or the value is not finite or out of its range.
        TypeError: The value is not a number.
    """

    kind: BandKind
    value: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(BandKind):
            raise ValueError(f"bands: kind must be one of {list(get_args(BandKind))}, got {self.kind!r}")
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise TypeError(f"bands: {self.kind} takes a number, got {self.value!r}")
        if self.kind == "radial" and not 0.0 <= self.value < math.sqrt(2.0):
            raise ValueError(
                f"bands: the radial cutoff must be at least 0 and below sqrt(2), where 1.0 is Nyquist along "
                f"one axis and sqrt(2) the corner of the spectrum, got {self.value!r}"
            )
        if self.kind == "quantile" and not 0.0 < self.value < 1.0:
            raise ValueError(f"bands: the quantile fraction must lie between 0 and 1, got {self.value!r}")

    @classmethod
    def radial(cls, cutoff: float) -> BandSplit:
        """Split by distance from zero frequency: a bin is LF where ``sqrt(f_y^2 + f_x^2) <= cutoff``.

        Args:
            cutoff: Radius in units of Nyquist, in ``[0, sqrt(2))``; 0 leaves the mean alone in the low band.
        """
        return cls("radial", cutoff)

    @classmethod
    def quantile(cls, fraction: float) -> BandSplit:
        """Split by the teacher's magnitude: LF where ``|F(t)|`` is below its quantile over (C, H, W).

        This is what the released script of FRAMER does, kept for parity only. On photographs it is inverted:
        the weak bins that it calls low lie near Nyquist and hold a negligible part of the energy.

        Args:
            fraction: The quantile, in ``(0, 1)``.
        """
        return cls("quantile", fraction)

    def low_mask(self, teacher_spectrum: Tensor) -> Tensor:
        """Mask of the low band over the full `torch.fft.fft2` layout; the high band is its complement.

        Args:
            teacher_spectrum: ``[B, C, H, W]``, complex, the teacher's DFT. ``radial`` needs its size alone.

        Returns:
            A bool tensor, ``[H, W]`` for ``radial`` and ``[B, C, H, W]`` for ``quantile``.

        Raises:
            ValueError: All frequencies of a map of this size are within the radial cutoff.
        """
        if self.kind == "radial":
            height, width = teacher_spectrum.shape[-2:]
            return self.radial_mask(height, width, teacher_spectrum.device)
        magnitude = teacher_spectrum.detach().abs()
        # A real map's bins k and -k have one magnitude. Made equal to the bit, they are in one band, also where the
        # quantile is that very magnitude.
        magnitude = (magnitude + magnitude.flip((-2, -1)).roll((1, 1), (-2, -1))) / 2
        threshold = sample_quantile(magnitude.flatten(1), self.value)
        return magnitude < threshold[:, None, None, None]

    def radial_mask(self, height: int, width: int, device: torch.device) -> Tensor:
        """Mask of the low band of a ``radial`` split, ``[H, W]`` bool over the `torch.fft.fft2` layout.

        Args:
            height: H.
            width: W.
            device: Where the mask is to be.

        Raises:
            ValueError: All frequencies of a map of this size are within the radial cutoff.
        """
        highest_y, highest_x = 2 * (height // 2) / height, 2 * (width // 2) / width
        if math.sqrt(highest_y**2 + highest_x**2) <= self.value:
            raise ValueError(
                f"bands: a {height} x {width} map has no frequency above the radial cutoff {self.value}, so its high "
                f"band is empty; lower the cutoff or use larger feature maps"
            )
        # Always float64: features of every dtype get the same bins.
        f_y: Tensor = 2 * torch.fft.fftfreq(height, dtype=torch.float64, device=device)
        f_x: Tensor = 2 * torch.fft.fftfreq(width, dtype=torch.float64, device=device)
        return (f_y[:, None].square() + f_x[None, :].square()).sqrt() <= self.value


DEFAULT_BANDS = BandSplit.radial(0.25)
"""The paper prints no cutoff; this is ours."""


def sample_quantile(values: Tensor, fraction: float) -> Tensor:
    """Quantile of every row, interpolated linearly between order statistics.

    Equals `torch.quantile`, which refuses more than 2**24 elements, and takes any number of them.

    Args:
        values: ``[B, D]``, floating.
        fraction: The quantile, in ``[0, 1]``.

    Returns:
        ``[B]``, in the dtype of ``values``.
    """
    rank = fraction * (values.shape[1] - 1)
    below, above = math.floor(rank), math.ceil(rank)
    # sort, not kthvalue: the latter is refused on CUDA under torch.use_deterministic_algorithms.
    ordered = values.sort(dim=1).values
    return torch.lerp(ordered[:, below], ordered[:, above], rank - below)
