"""Matrices of the packed real DFT and the bands as the kernels take them, computed in float64 and kept per device."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from framer_kernels.backends.triton.configs import power_of_two
from framer_kernels.bands import BandSplit
from framer_kernels.fourier import PackedAxis
from framer_kernels.precision import ENERGY_EPS


class ForwardTables(NamedTuple):
    """What a whole transform needs."""

    basis_h: Tensor
    """``[2 or 1, padded H, padded H]``: cosine rows, then sine rows; the first of the sines is Nyquist, or zero."""
    basis_w: Tensor
    flags: Tensor
    """``[half H, half W]`` int32: bit q is set where the coefficient in quadrant q is low."""
    low_h: int
    """Rows of a quadrant, from the first on, that hold all its low coefficients."""
    low_w: int
    energy_scales: tuple[float, float]
    """1 / (bins + eps) of the low and the high band."""


class LowTables(NamedTuple):
    """What a projection on the low band needs."""

    basis_h: Tensor
    """``[2 or 1, rows, padded H]``: the rows that have low coefficients."""
    basis_w: Tensor
    mask: Tensor
    """``[rows, rows]`` int32: which of them are low."""
    rows_h: int
    rows_w: int


class SpectralTables(NamedTuple):
    """What kernels that form bins need."""

    basis_h: Tensor
    """As in `ForwardTables`."""
    basis_w: Tensor
    low: Tensor
    """Radial bands: ``[cosine rows, cosine columns]`` int8, bit ``q - 1`` is set where component q of the bins at a
    position is low; empty for quantile bands."""
    energy_scales: tuple[float, float]
    """1 / (bins + eps) of the low and the high band; 1 for quantile bands, which differ from channel to channel."""


def _rounded(basis: Tensor, precision: str, device: torch.device) -> Tensor:
    """The matrix in the numbers that the matrix units take, rounded to nearest."""
    if precision == "bf16x3":
        high = basis.to(torch.bfloat16)
        return torch.stack([high, (basis - high.double()).to(torch.bfloat16)]).to(device)
    single = basis.float()
    if precision == "tf32":
        single = ((single.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return single[None].to(device)


def _quadrants(axis: PackedAxis, padded: int) -> tuple[Tensor, list[list[int | None]]]:
    """Cosine and sine rows, ``[padded, padded]``, and their frequencies."""
    basis = axis.basis(interior_scale=math.sqrt(2.0))
    half, edges, interior = padded // 2, axis.edges, axis.interior
    out = basis.new_zeros(padded, padded)
    out[0, : axis.length] = basis[0]
    out[1 : 1 + interior, : axis.length] = basis[edges : edges + interior]
    out[half + 1 : half + 1 + interior, : axis.length] = basis[edges + interior :]
    nyquist = None
    if edges == 2:
        out[half, : axis.length] = basis[1]
        nyquist = axis.length // 2
    inside: list[int | None] = list(range(1, interior + 1))
    rest: list[int | None] = [None] * (half - 1 - interior)
    return out, [[0, *inside, *rest], [nyquist, *inside, *rest]]


@lru_cache(maxsize=64)
def forward_tables(
    height: int, width: int, padded_h: int, padded_w: int, bands: BandSplit, precision: str, device: torch.device
) -> ForwardTables:
    """Tables of a size, made once."""
    mask = bands.radial_mask(height, width, torch.device("cpu"))
    basis_h, frequencies_h = _quadrants(PackedAxis(height), padded_h)
    basis_w, frequencies_w = _quadrants(PackedAxis(width), padded_w)
    flags = torch.zeros(padded_h // 2, padded_w // 2, dtype=torch.int32, device="cpu")
    for quadrant in range(4):
        for row, k_h in enumerate(frequencies_h[quadrant // 2]):
            for column, k_w in enumerate(frequencies_w[quadrant % 2]):
                if k_h is not None and k_w is not None and bool(mask[k_h, k_w]):
                    flags[row, column] |= 1 << quadrant
    low = flags.nonzero()
    low_h, low_w = (int(n) + 1 for n in low.amax(dim=0))
    scale_lf, scale_hf = (1 / (int(band.sum()) + ENERGY_EPS) for band in (mask, ~mask))
    return ForwardTables(
        _rounded(basis_h, precision, device),
        _rounded(basis_w, precision, device),
        flags.to(device),
        low_h,
        low_w,
        (scale_lf, scale_hf),
    )


@lru_cache(maxsize=64)
def low_tables(
    height: int, width: int, padded_h: int, padded_w: int, bands: BandSplit, precision: str, device: torch.device
) -> LowTables:
    """Tables of a size, made once."""
    mask = bands.radial_mask(height, width, torch.device("cpu"))
    axes = [PackedAxis(height), PackedAxis(width)]
    frequencies = [torch.tensor(axis.frequencies, device="cpu") for axis in axes]
    by_coefficient = mask[frequencies[0][:, None], frequencies[1]]
    bases: list[Tensor] = []
    kept: list[Tensor] = []
    for axis, padded, dim in zip(axes, (padded_h, padded_w), (1, 0), strict=True):
        rows = by_coefficient.any(dim=dim).nonzero().flatten()
        basis = axis.basis(interior_scale=math.sqrt(2.0))[rows]
        out = basis.new_zeros(power_of_two(len(rows)), padded)
        out[: len(rows), : axis.length] = basis
        bases.append(_rounded(out, precision, device))
        kept.append(rows)
    rows_h, rows_w = (basis.shape[1] for basis in bases)
    low = torch.zeros(rows_h, rows_w, dtype=torch.int32, device="cpu")
    low[: len(kept[0]), : len(kept[1])] = by_coefficient[kept[0][:, None], kept[1]].int()
    return LowTables(bases[0], bases[1], low.to(device), rows_h, rows_w)


@lru_cache(maxsize=64)
def spectral_tables(
    height: int, width: int, padded_h: int, padded_w: int, bands: BandSplit, precision: str, device: torch.device
) -> SpectralTables:
    """Tables of a size, made once."""
    basis_h, frequencies_h = _quadrants(PackedAxis(height), padded_h)
    basis_w, frequencies_w = _quadrants(PackedAxis(width), padded_w)
    bases = [_rounded(basis, precision, device) for basis in (basis_h, basis_w)]
    if bands.kind == "quantile":
        return SpectralTables(bases[0], bases[1], torch.zeros(0, dtype=torch.int8, device=device), (1.0, 1.0))
    mask = bands.radial_mask(height, width, torch.device("cpu"))
    low = torch.zeros((height + 1) // 2, (width + 1) // 2, dtype=torch.int8, device="cpu")
    for row in range(low.shape[0]):
        for column in range(low.shape[1]):
            # Quadrants cc, cs, ss, sc: inside and on edges the bin of component q is that of this coefficient, too.
            quadrants = [(0, 0), (0, 1), (1, 1), (1, 0)]
            if row and not column:
                quadrants = [(0, 0), (1, 0), (1, 1), (0, 1)]
            for q, (sine_h, sine_w) in enumerate(quadrants):
                k_h, k_w = frequencies_h[sine_h][row], frequencies_w[sine_w][column]
                if k_h is not None and k_w is not None and bool(mask[k_h, k_w]):
                    low[row, column] |= 1 << q
    scale_lf, scale_hf = (1 / (int(band.sum()) + ENERGY_EPS) for band in (mask, ~mask))
    return SpectralTables(bases[0], bases[1], low.to(device), (scale_lf, scale_hf))
