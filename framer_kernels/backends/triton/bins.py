"""Bins of the spectrum from packed coefficients and back, and sums over them in the two bands.

At each position of the quadrants of packed coefficients are two bins: inside ``F(k_h, k_w)`` and ``F(-k_h, k_w)``, in
the first row or column those of the two edges; in the corner, which both share, are four real ones. Components 1 and 2
are the real and imaginary part of the first bin, 3 and 4 those of the second; in the corner each is a bin. They are
times the root of the number of bins that they stand for, so that plain sums of products are those over the whole
spectrum. The vector of ``complex`` is made of components, that of ``magnitude`` of the magnitudes of bins: 1 and 3 at
all positions, 2 and 4 in the corner alone. Bit ``q - 1`` of a position is set where component q is in the low band.
"""
# mypy: ignore-errors
# ruff: noqa: D103, N803

import triton
import triton.language as tl


@triton.jit
def edges(HH: tl.constexpr, HW: tl.constexpr, BC: tl.constexpr):
    """Positions in the first row, in the first column, and in both, ``[HH, HW * n]``."""
    o_h = tl.arange(0, HH)[:, None]
    o_w = (tl.arange(0, HW * BC) // BC)[None, :]
    m_row = (o_h == 0) & (o_w >= 0)
    m_column = (o_w == 0) & (o_h >= 0)
    return m_row, m_column, m_row & m_column


@triton.jit
def to_components(b_cc, b_cs, b_sc, b_ss, m_row, m_column):
    """On an edge two coefficients make a bin; inside four make two. The map is orthogonal."""
    m_edge = m_row | m_column
    root: tl.constexpr = 0.7071067811865476
    b_1 = tl.where(m_edge, b_cc, root * (b_cc - b_ss))
    b_2 = tl.where(m_row, b_cs, tl.where(m_column, b_sc, root * (b_cs + b_sc)))
    b_3 = tl.where(m_edge, b_ss, root * (b_cc + b_ss))
    b_4 = tl.where(m_row, b_sc, tl.where(m_column, b_cs, root * (b_cs - b_sc)))
    return b_1, b_2, b_3, b_4


@triton.jit
def from_components(b_1, b_2, b_3, b_4, m_row, m_column):
    """Transpose and inverse of `to_components`."""
    m_edge = m_row | m_column
    root: tl.constexpr = 0.7071067811865476
    b_cc = tl.where(m_edge, b_1, root * (b_3 + b_1))
    b_cs = tl.where(m_row, b_2, tl.where(m_column, b_4, root * (b_2 + b_4)))
    b_sc = tl.where(m_row, b_4, tl.where(m_column, b_2, root * (b_2 - b_4)))
    b_ss = tl.where(m_edge, b_3, root * (b_3 - b_1))
    return b_cc, b_cs, b_sc, b_ss


@triton.jit
def to_magnitudes(b_1, b_2, b_3, b_4, m_corner):
    """Of the bins, ``[HH, HW * n]`` for components 1 and 3, and of the corner's others, ``[1, HW * n]``."""
    m_1 = tl.sqrt(b_1 * b_1 + tl.where(m_corner, 0.0, b_2 * b_2))
    m_3 = tl.sqrt(b_3 * b_3 + tl.where(m_corner, 0.0, b_4 * b_4))
    m_2 = tl.sum(tl.where(m_corner, tl.abs(b_2), 0.0), axis=0, keep_dims=True)
    m_4 = tl.sum(tl.where(m_corner, tl.abs(b_4), 0.0), axis=0, keep_dims=True)
    return m_1, m_2, m_3, m_4


@triton.jit
def to_vector(b_cc, b_cs, b_sc, b_ss, m_row, m_column, MAGNITUDE: tl.constexpr):
    b_1, b_2, b_3, b_4 = to_components(b_cc, b_cs, b_sc, b_ss, m_row, m_column)
    if MAGNITUDE:
        b_1, b_2, b_3, b_4 = to_magnitudes(b_1, b_2, b_3, b_4, m_row & m_column)
    return b_1, b_2, b_3, b_4


@triton.jit
def inverse_root(b_square):
    """Zero where the square has no root in normal numbers: a bin of nothing has no direction."""
    return tl.where(b_square >= 1.1754944e-38, tl.rsqrt(b_square), 0.0)


@triton.jit
def through_magnitudes(g_1, g_2, g_3, g_4, b_1, b_2, b_3, b_4, m_corner):
    """Gradient of the components from that of the magnitudes: ``d|F|/dF = F / |F|``."""
    i_1 = inverse_root(b_1 * b_1 + tl.where(m_corner, 0.0, b_2 * b_2))
    i_3 = inverse_root(b_3 * b_3 + tl.where(m_corner, 0.0, b_4 * b_4))
    g_2 = tl.where(m_corner, g_2 * inverse_root(b_2 * b_2), g_1 * i_1)
    g_4 = tl.where(m_corner, g_4 * inverse_root(b_4 * b_4), g_3 * i_3)
    return g_1 * i_1 * b_1, g_2 * b_2, g_3 * i_3 * b_3, g_4 * b_4


@triton.jit
def total(b_odd, b_even, MAGNITUDE: tl.constexpr):
    return tl.sum(b_odd) + tl.sum(b_even) if MAGNITUDE else tl.sum(b_odd + b_even)


@triton.jit
def low_sum(b_odd, b_even, b_1, b_2, b_3, b_4, MAGNITUDE: tl.constexpr):
    b_first = tl.where((b_odd & 1) != 0, b_1, 0.0) + tl.where((b_odd & 4) != 0, b_3, 0.0)
    b_second = tl.where((b_even & 2) != 0, b_2, 0.0) + tl.where((b_even & 8) != 0, b_4, 0.0)
    return total(b_first, b_second, MAGNITUDE)


@triton.jit
def band_sums(b_odd, b_even, b_1, b_2, b_3, b_4, MAGNITUDE: tl.constexpr):
    """Sums in the two bands; each is summed by itself, never as the total less the other."""
    low = low_sum(b_odd, b_even, b_1, b_2, b_3, b_4, MAGNITUDE)
    return low, low_sum(~b_odd, ~b_even, b_1, b_2, b_3, b_4, MAGNITUDE)


@triton.jit
def energies(b_odd, b_row, m_1, m_2, m_3, m_4, m_corner, b_lf, b_hf):
    """Energies from magnitudes; ``b_lf`` and ``b_hf`` are 1 / bins, the same everywhere or of every column."""
    b_scale = tl.where(m_corner, 1.0, 1.4142135623730951)
    m_1 = m_1 * b_scale
    m_3 = m_3 * b_scale
    low = low_sum(b_odd, b_row, m_1 * b_lf, m_2 * b_lf, m_3 * b_lf, m_4 * b_lf, True)
    return low, low_sum(~b_odd, ~b_row, m_1 * b_hf, m_2 * b_hf, m_3 * b_hf, m_4 * b_hf, True)


@triton.jit
def by_band(b_low, BIT: tl.constexpr, lf, hf):
    return tl.where((b_low & BIT) != 0, lf, hf)
