"""Triton kernels for what needs the bins of the spectrum: magnitudes, and quantile bands.

A vector in scratch is a tile for each sample and chunk of channels, ``[rows, columns, channels]`` of components 1, 3, 2
and 4 of the bins.
"""
# mypy: ignore-errors
# ruff: noqa: D103, N803

import triton
import triton.language as tl

from framer_kernels.backends.triton.bins import (
    band_sums,
    by_band,
    edges,
    energies,
    from_components,
    low_sum,
    through_magnitudes,
    to_components,
    to_magnitudes,
    to_vector,
)
from framer_kernels.backends.triton.transforms import inverse, load_tile, map_row, transform


@triton.jit
def vector_part(p_part, ROWS: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HW: tl.constexpr, BC: tl.constexpr):
    """Where one component of a tile is, and which of it exists."""
    LH: tl.constexpr = (H + 1) // 2
    # Of the components that the corner alone has, one column is kept.
    LW: tl.constexpr = (W + 1) // 2 if ROWS != 1 else 1
    o_h = tl.arange(0, ROWS)[:, None]
    o_column = tl.arange(0, HW * BC)[None, :]
    return p_part + o_h * (LW * BC) + o_column, (o_h < LH) & (o_column < LW * BC)


@triton.jit
def vector_parts(p_vectors, i_tile, H: tl.constexpr, W: tl.constexpr, HH: tl.constexpr, HW: tl.constexpr,
                 BC: tl.constexpr, MAGNITUDE: tl.constexpr):  # fmt: skip
    """Pointers to the components of a tile, and masks of 1 and 3, and of 2 and 4."""
    PART: tl.constexpr = ((H + 1) // 2) * ((W + 1) // 2) * BC
    REST: tl.constexpr = BC if MAGNITUDE else PART
    ROWS: tl.constexpr = 1 if MAGNITUDE else HH
    p_tile = p_vectors + i_tile.to(tl.int64) * (2 * PART + 2 * REST)
    p_1, m_odd = vector_part(p_tile, HH, H, W, HW, BC)
    p_2, m_even = vector_part(p_tile + 2 * PART, ROWS, H, W, HW, BC)
    return p_1, p_2, p_1 + PART, p_2 + REST, m_odd, m_even


@triton.jit
def load_vector(p_vectors, i_tile, H: tl.constexpr, W: tl.constexpr, HH: tl.constexpr, HW: tl.constexpr,
                BC: tl.constexpr, MAGNITUDE: tl.constexpr):  # fmt: skip
    p_1, p_2, p_3, p_4, m_odd, m_even = vector_parts(p_vectors, i_tile, H, W, HH, HW, BC, MAGNITUDE)
    b_1 = tl.load(p_1, mask=m_odd, other=0.0).to(tl.float32)
    b_2 = tl.load(p_2, mask=m_even, other=0.0).to(tl.float32)
    b_3 = tl.load(p_3, mask=m_odd, other=0.0).to(tl.float32)
    b_4 = tl.load(p_4, mask=m_even, other=0.0).to(tl.float32)
    return b_1, b_2, b_3, b_4


@triton.jit
def load_low(p_low, i_tile, ROWS: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HW: tl.constexpr, BC: tl.constexpr,
             QUANTILE: tl.constexpr):  # fmt: skip
    """Bits of the low band: one table for all maps, or with quantile bands a tile for each sample's teacher."""
    LH: tl.constexpr = (H + 1) // 2
    LW: tl.constexpr = (W + 1) // 2
    o_h = tl.arange(0, ROWS)[:, None]
    o_column = tl.arange(0, HW * BC)[None, :]
    if QUANTILE:
        p_tile = p_low + i_tile.to(tl.int64) * (LH * LW * BC) + o_h * (LW * BC) + o_column
    else:
        p_tile = p_low + o_h * LW + o_column // BC
    return tl.load(p_tile, mask=(o_h < LH) & (o_column < LW * BC), other=0).to(tl.int32)


@triton.jit
def load_bands(p_low, i_tile, H: tl.constexpr, W: tl.constexpr, HH: tl.constexpr, HW: tl.constexpr, BC: tl.constexpr,
               QUANTILE: tl.constexpr, MAGNITUDE: tl.constexpr):  # fmt: skip
    """Bits of the low band where components 1 and 3 are, and where 2 and 4 are."""
    b_odd = load_low(p_low, i_tile, HH, H, W, HW, BC, QUANTILE)
    b_even = b_odd
    if MAGNITUDE:
        b_even = load_low(p_low, i_tile, 1, H, W, HW, BC, QUANTILE)
    return b_odd, b_even


@triton.jit
def load_scales(p_scales, i_b, i_chunk, CHUNKS, scale_lf, scale_hf, HW: tl.constexpr, BC: tl.constexpr,
                QUANTILE: tl.constexpr):  # fmt: skip
    """1 / bins of the two bands: of radial ones two numbers, of quantile ones two for every channel."""
    if QUANTILE:
        p_row = p_scales + i_b * 2 * CHUNKS * BC + i_chunk * BC + (tl.arange(0, HW * BC) % BC)[None, :]
        scale_lf = tl.load(p_row) * scale_lf
        scale_hf = tl.load(p_row + CHUNKS * BC) * scale_hf
    return scale_lf, scale_hf


@triton.jit
def store_measures(p_sums, stride, v_1, v_2, v_3, v_4, b_odd, b_even, p_low, i_tile, m_row, m_column,
                   scale_lf, scale_hf, H: tl.constexpr, W: tl.constexpr, HW: tl.constexpr,
                   BC: tl.constexpr, QUANTILE: tl.constexpr, MAGNITUDE: tl.constexpr):  # fmt: skip
    """Energies and squared norms of a tile, LF then HF of each, ``stride`` apart."""
    m_corner = m_row & m_column
    m_1, m_2, m_3, m_4 = v_1, v_2, v_3, v_4
    b_row = b_even
    if not MAGNITUDE:
        m_1, m_2, m_3, m_4 = to_magnitudes(v_1, v_2, v_3, v_4, m_corner)
        b_row = load_low(p_low, i_tile, 1, H, W, HW, BC, QUANTILE)
    e_lf, e_hf = energies(b_odd, b_row, m_1, m_2, m_3, m_4, m_corner, scale_lf, scale_hf)
    n_lf, n_hf = band_sums(b_odd, b_even, v_1 * v_1, v_2 * v_2, v_3 * v_3, v_4 * v_4, MAGNITUDE)
    tl.store(p_sums, e_lf)
    tl.store(p_sums + stride, e_hf)
    tl.store(p_sums + 2 * stride, n_lf)
    tl.store(p_sums + 3 * stride, n_hf)


@triton.jit
def store_products(p_out, p_vectors, p_low, i_chunk, CHUNKS, G, x_1, x_2, x_3, x_4, b_odd, b_even, H: tl.constexpr,
                   W: tl.constexpr, HH: tl.constexpr, HW: tl.constexpr, BC: tl.constexpr, QUANTILE: tl.constexpr,
                   MAGNITUDE: tl.constexpr):  # fmt: skip
    """High-band products of a tile with that of every target."""
    for i_g in range(G):
        i_tile = i_g * CHUNKS + i_chunk
        t_1, t_2, t_3, t_4 = load_vector(p_vectors, i_tile, H, W, HH, HW, BC, MAGNITUDE)
        b_out, b_out_even = ~b_odd, ~b_even
        if QUANTILE:
            t_odd, t_even = load_bands(p_low, i_tile, H, W, HH, HW, BC, QUANTILE, MAGNITUDE)
            b_out, b_out_even = b_out & ~t_odd, b_out_even & ~t_even
        tl.store(p_out + i_g, low_sum(b_out, b_out_even, x_1 * t_1, x_2 * t_2, x_3 * t_3, x_4 * t_4, MAGNITUDE))


@triton.jit
def value_pointers(p_values, i_b, i_c, C, H: tl.constexpr, W: tl.constexpr, HH: tl.constexpr, HW: tl.constexpr,
                   BC: tl.constexpr):  # fmt: skip
    """Where magnitudes ``[B, H * W, C]`` of the quadrants cc, cs, sc, ss are, and which of them exist.

    An odd side has no Nyquist frequency, which is the first of its sines.
    """
    LH: tl.constexpr = (H + 1) // 2
    LW: tl.constexpr = (W + 1) // 2
    o_h = tl.arange(0, HH)[:, None]
    o_column = tl.arange(0, HW * BC)
    o_w = (o_column // BC)[None, :]
    o_c = (i_c + o_column % BC)[None, :]
    m_cc = (o_h < LH) & (o_w < LW) & (o_c < C)
    m_cs = m_cc & (o_w >= W % 2)
    m_sc = m_cc & (o_h >= H % 2)
    p_cc = p_values + i_b * (H * W) * C + (o_h * W + o_w) * C + o_c
    p_cs = p_cc + (LW - W % 2) * C
    p_sc = p_cc + (LH - H % 2) * W * C
    return p_cc, p_cs, p_sc, p_sc + (LW - W % 2) * C, m_cc, m_cs, m_sc, m_cs & m_sc


@triton.jit
def framer_loss_magnitudes_fwd_kernel(
    p_table, i_map, s_b, s_c, s_h, s_w, p_basis_h, p_basis_w, p_values, C,
    H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, BC: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, UNIFORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``|F|`` over the whole spectrum, ``[B, H * W, C]`` in some order; conjugate bins' are equal to the bit."""
    HH: tl.constexpr = HP // 2
    HW: tl.constexpr = WP // 2
    i_chunk, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_c = i_chunk * BC
    p_map, r_b, r_c, r_h, r_w = map_row(p_table, i_map, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    b_x = load_tile(p_map + i_b * r_b, r_c, r_h, r_w, i_c, C, H, W, HP, WP, BC)
    b_cc, b_cs, b_sc, b_ss = transform(b_x, p_basis_h, p_basis_w, HP, WP, BC, PRECISION)
    m_row, m_column, m_corner = edges(HH, HW, BC)
    b_1, b_2, b_3, b_4 = to_components(b_cc, b_cs, b_sc, b_ss, m_row, m_column)
    b_scale = tl.where(m_corner, 1.0, 0.7071067811865476)
    b_first = b_scale * tl.sqrt_rn(b_1 * b_1 + tl.where(m_corner, 0.0, b_2 * b_2))
    b_second = b_scale * tl.sqrt_rn(b_3 * b_3 + tl.where(m_corner, 0.0, b_4 * b_4))
    p_cc, p_cs, p_sc, p_ss, m_cc, m_cs, m_sc, m_ss = value_pointers(p_values, i_b, i_c, C, H, W, HH, HW, BC)
    tl.store(p_cc, b_first, mask=m_cc)
    tl.store(p_ss, b_second, mask=m_ss)
    # A bin and its conjugate have the places of the two coefficients that they are made of.
    tl.store(p_cs, tl.where(m_corner, tl.abs(b_2), tl.where(m_column, b_second, b_first)), mask=m_cs)
    tl.store(p_sc, tl.where(m_corner, tl.abs(b_4), tl.where(m_column, b_first, b_second)), mask=m_sc)


@triton.jit
def low_bins(p_values, threshold, i_b, i_c, C, H: tl.constexpr, W: tl.constexpr, HH: tl.constexpr, HW: tl.constexpr,
             BC: tl.constexpr):  # fmt: skip
    """Bits of the bins whose magnitude is below the threshold, and how many bins that is in every channel."""
    p_cc, p_cs, p_sc, p_ss, m_cc, m_cs, m_sc, m_ss = value_pointers(p_values, i_b, i_c, C, H, W, HH, HW, BC)
    _, _, m_corner = edges(HH, HW, BC)
    l_1 = m_cc & (tl.load(p_cc, mask=m_cc, other=0.0) < threshold)
    l_3 = m_ss & (tl.load(p_ss, mask=m_ss, other=0.0) < threshold)
    m_cs &= m_corner
    m_sc &= m_corner
    c_2 = m_cs & (tl.load(p_cs, mask=m_cs, other=0.0) < threshold)
    c_4 = m_sc & (tl.load(p_sc, mask=m_sc, other=0.0) < threshold)
    l_2 = tl.where(m_corner, c_2, l_1)
    l_4 = tl.where(m_corner, c_4, l_3)
    b_bits = l_1.to(tl.int32) + 2 * l_2.to(tl.int32) + 4 * l_3.to(tl.int32) + 8 * l_4.to(tl.int32)
    b_count = l_1.to(tl.int32) + l_2.to(tl.int32) + l_3.to(tl.int32) + l_4.to(tl.int32)
    b_count = tl.sum(tl.reshape(tl.sum(b_count, axis=0), (HW, BC)), axis=0)
    return b_bits, b_count


@triton.jit
def framer_loss_vectors_fwd_kernel(
    p_table, i_map, s_b, s_c, s_h, s_w, p_basis_h, p_basis_w, p_values, p_thresholds, p_low, p_scales, p_vectors,
    p_sums, B, C, CHUNKS, SUMS, FIRST, scale_lf, scale_hf, EPS: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, BC: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, UNIFORM: tl.constexpr, PRECISION: tl.constexpr, MAGNITUDE: tl.constexpr,
    QUANTILE: tl.constexpr, DIVIDE: tl.constexpr, VECTORS: tl.constexpr, STATISTICS: tl.constexpr,
):  # fmt: skip
    """Vectors of a map, not divided into bands; with ``DIVIDE`` also quantile bands from the map's magnitudes.

    With ``STATISTICS`` energies and squared norms follow from ``FIRST``.
    """
    HH: tl.constexpr = HP // 2
    HW: tl.constexpr = WP // 2
    i_chunk, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_c = i_chunk * BC
    i_tile = i_b * CHUNKS + i_chunk
    if DIVIDE:
        b_bits, b_count = low_bins(p_values, tl.load(p_thresholds + i_b), i_b, i_c, C, H, W, HH, HW, BC)
        p_bits, m_bits = vector_part(p_low + i_tile * (((H + 1) // 2) * ((W + 1) // 2) * BC), HH, H, W, HW, BC)
        tl.store(p_bits, b_bits.to(tl.int8), mask=m_bits)
        p_row = p_scales + i_b * 2 * CHUNKS * BC + i_c + tl.arange(0, BC)
        tl.store(p_row, 1.0 / (b_count.to(tl.float32) + EPS))
        tl.store(p_row + CHUNKS * BC, 1.0 / ((H * W - b_count).to(tl.float32) + EPS))
        # Other threads of the program read them; on AMD a barrier alone does not wait for stores, but they are read
        # after the transform, which does.
        tl.debug_barrier()
    if VECTORS:
        p_map, r_b, r_c, r_h, r_w = map_row(p_table, i_map, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
        b_x = load_tile(p_map + i_b * r_b, r_c, r_h, r_w, i_c, C, H, W, HP, WP, BC)
        b_cc, b_cs, b_sc, b_ss = transform(b_x, p_basis_h, p_basis_w, HP, WP, BC, PRECISION)
        m_row, m_column, _ = edges(HH, HW, BC)
        v_1, v_2, v_3, v_4 = to_vector(b_cc, b_cs, b_sc, b_ss, m_row, m_column, MAGNITUDE)
        p_1, p_2, p_3, p_4, m_odd, m_even = vector_parts(p_vectors, i_tile, H, W, HH, HW, BC, MAGNITUDE)
        DTYPE_OUT: tl.constexpr = p_vectors.dtype.element_ty
        tl.store(p_1, v_1.to(DTYPE_OUT), mask=m_odd)
        tl.store(p_2, v_2.to(DTYPE_OUT), mask=m_even)
        tl.store(p_3, v_3.to(DTYPE_OUT), mask=m_odd)
        tl.store(p_4, v_4.to(DTYPE_OUT), mask=m_even)
        if STATISTICS:
            b_odd, b_even = load_bands(p_low, i_tile, H, W, HH, HW, BC, QUANTILE, MAGNITUDE)
            scale_lf, scale_hf = load_scales(p_scales, i_b, i_chunk, CHUNKS, scale_lf, scale_hf, HW, BC, QUANTILE)
            p_out = p_sums + i_chunk.to(tl.int64) * SUMS + FIRST + i_b
            store_measures(
                p_out, B, v_1, v_2, v_3, v_4, b_odd, b_even, p_low, i_tile, m_row, m_column, scale_lf, scale_hf,
                H, W, HW, BC, QUANTILE, MAGNITUDE,
            )  # fmt: skip


@triton.jit
def framer_loss_spectral_statistics_fwd_kernel(
    p_table, p_steps, s_b, s_c, s_h, s_w, p_basis_h, p_basis_w, p_low, p_scales, p_vectors, p_sums,
    B, C, CHUNKS, MAPS, LAYERS, STEPS, SEGMENTS, PER_PROGRAM, SUMS, PRODUCTS, scale_lf, scale_hf,
    H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, BC: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, UNIFORM: tl.constexpr, PRECISION: tl.constexpr, MAGNITUDE: tl.constexpr,
    QUANTILE: tl.constexpr,
):  # fmt: skip
    """Energies and norms of every map, its products with the teacher's vectors and with the map before it.

    A step is ``(map, whether it is measured here, layer whose pair ends here or -1)``. Products with all samples of the
    teacher follow from ``PRODUCTS``.
    """
    HH: tl.constexpr = HP // 2
    HW: tl.constexpr = WP // 2
    ROWS: tl.constexpr = 1 if MAGNITUDE else HH
    # Programs of one chunk run together: the teacher's vectors stay in the cache.
    i_program = tl.program_id(0)
    i_segment = i_program % SEGMENTS
    i_b = (i_program // SEGMENTS % B).to(tl.int64)
    i_chunk = i_program // SEGMENTS // B
    i_c = i_chunk * BC
    i_own = i_b * CHUNKS + i_chunk
    p_sums += i_chunk.to(tl.int64) * SUMS
    m_row, m_column, _ = edges(HH, HW, BC)
    y_1 = tl.zeros((HH, HW * BC), tl.float32)
    y_2 = tl.zeros((ROWS, HW * BC), tl.float32)
    y_3 = tl.zeros((HH, HW * BC), tl.float32)
    y_4 = tl.zeros((ROWS, HW * BC), tl.float32)
    first = i_segment * PER_PROGRAM
    # Matrices that were loaded before the loop would stay in registers, which are scarce.
    for i_step in tl.range(first, tl.minimum(first + PER_PROGRAM, STEPS), disable_licm=True):
        i_map = tl.load(p_steps + i_step * 3)
        measured = tl.load(p_steps + i_step * 3 + 1)
        i_pair = tl.load(p_steps + i_step * 3 + 2)
        p_map, r_b, r_c, r_h, r_w = map_row(p_table, i_map, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
        b_x = load_tile(p_map + i_b * r_b, r_c, r_h, r_w, i_c, C, H, W, HP, WP, BC)
        b_cc, b_cs, b_sc, b_ss = transform(b_x, p_basis_h, p_basis_w, HP, WP, BC, PRECISION)
        tl.debug_barrier()
        x_1, x_2, x_3, x_4 = to_vector(b_cc, b_cs, b_sc, b_ss, m_row, m_column, MAGNITUDE)
        b_odd, b_even = load_bands(p_low, i_own, H, W, HH, HW, BC, QUANTILE, MAGNITUDE)
        if i_pair >= 0:
            d_lf, d_hf = band_sums(b_odd, b_even, x_1 * y_1, x_2 * y_2, x_3 * y_3, x_4 * y_4, MAGNITUDE)
            p_out = p_sums + (4 * MAPS + LAYERS + i_pair) * B + i_b
            tl.store(p_out, d_lf)
            tl.store(p_out + LAYERS * B, d_hf)
        if measured != 0:
            b_lf, b_hf = load_scales(p_scales, i_b, i_chunk, CHUNKS, scale_lf, scale_hf, HW, BC, QUANTILE)
            store_measures(
                p_sums + i_map * B + i_b, MAPS * B, x_1, x_2, x_3, x_4, b_odd, b_even, p_low, i_own, m_row, m_column,
                b_lf, b_hf, H, W, HW, BC, QUANTILE, MAGNITUDE,
            )  # fmt: skip
            if i_map < LAYERS:
                t_1, t_2, t_3, t_4 = load_vector(p_vectors, i_own, H, W, HH, HW, BC, MAGNITUDE)
                d_lf = low_sum(b_odd, b_even, x_1 * t_1, x_2 * t_2, x_3 * t_3, x_4 * t_4, MAGNITUDE)
                tl.store(p_sums + (4 * MAPS + i_map) * B + i_b, d_lf)
                store_products(
                    p_sums + PRODUCTS + (i_map * B + i_b) * B, p_vectors, p_low, i_chunk, CHUNKS, B,
                    x_1, x_2, x_3, x_4, b_odd, b_even, H, W, HH, HW, BC, QUANTILE, MAGNITUDE,
                )  # fmt: skip
        y_1, y_2, y_3, y_4 = x_1, x_2, x_3, x_4


@triton.jit
def framer_loss_spectral_products_fwd_kernel(
    p_table, p_layers, s_b, s_c, s_h, s_w, p_basis_h, p_basis_w, p_low, p_target_low, p_vectors, p_sums,
    LAYERS, B, C, CHUNKS, G,
    H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, BC: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, UNIFORM: tl.constexpr, PRECISION: tl.constexpr, MAGNITUDE: tl.constexpr,
    QUANTILE: tl.constexpr,
):  # fmt: skip
    """High-band products of every sample of the layers listed with every target, ``[chunks, layers, B, G]``."""
    HH: tl.constexpr = HP // 2
    HW: tl.constexpr = WP // 2
    i_program = tl.program_id(0)
    i_row = i_program % (LAYERS * B)
    i_chunk = i_program // (LAYERS * B)
    i_b = (i_row % B).to(tl.int64)
    i_c = i_chunk * BC
    i_layer = tl.load(p_layers + i_row // B)
    p_map, r_b, r_c, r_h, r_w = map_row(p_table, i_layer, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    b_x = load_tile(p_map + i_b * r_b, r_c, r_h, r_w, i_c, C, H, W, HP, WP, BC)
    b_cc, b_cs, b_sc, b_ss = transform(b_x, p_basis_h, p_basis_w, HP, WP, BC, PRECISION)
    m_row, m_column, _ = edges(HH, HW, BC)
    x_1, x_2, x_3, x_4 = to_vector(b_cc, b_cs, b_sc, b_ss, m_row, m_column, MAGNITUDE)
    b_odd, b_even = load_bands(p_low, i_b * CHUNKS + i_chunk, H, W, HH, HW, BC, QUANTILE, MAGNITUDE)
    p_out = p_sums + (i_chunk.to(tl.int64) * LAYERS * B + i_row) * G
    store_products(
        p_out, p_vectors, p_target_low, i_chunk, CHUNKS, G, x_1, x_2, x_3, x_4, b_odd, b_even, H, W, HH, HW, BC,
        QUANTILE, MAGNITUDE,
    )  # fmt: skip


@triton.jit
def framer_loss_spectral_gradients_bwd_kernel(
    p_table, p_plan, s_b, s_c, s_h, s_w, g_b, g_c, g_h, g_w, p_basis_h, p_basis_w, p_low, p_target_low, p_vectors,
    p_teacher_lf, p_negative_lf, p_self_lf, p_self_hf, p_targets_hf, p_negative_hf, p_upstream, c_n, c_b, u_n, u_b,
    LAYERS, B, C, CHUNKS, G,
    H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, BC: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, UNIFORM: tl.constexpr, PRECISION: tl.constexpr, MAGNITUDE: tl.constexpr,
    QUANTILE: tl.constexpr, ADD: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Gradients of the students; with ``ADD`` the part of the targets alone, added to gradients that hold the rest.

    With ``SHARED`` the high-band part of the negatives is among what is added.

    A row of the plan is ``(student, its negative, gradient, row of the targets' coefficients)``: the first three are
    indices of maps.
    """
    HH: tl.constexpr = HP // 2
    HW: tl.constexpr = WP // 2
    ROWS: tl.constexpr = 1 if MAGNITUDE else HH
    # Programs of one chunk run together: the teacher's vectors and the layer's negative stay in the cache.
    i_program = tl.program_id(0)
    i_plan = i_program % LAYERS
    i_b = (i_program // LAYERS % B).to(tl.int64)
    i_chunk = i_program // LAYERS // B
    i_c = i_chunk * BC
    i_own = i_b * CHUNKS + i_chunk
    i_layer = tl.load(p_plan + i_plan * 4)
    i_negative = tl.load(p_plan + i_plan * 4 + 1)
    i_gradient = tl.load(p_plan + i_plan * 4 + 2)
    i_coefficients = tl.load(p_plan + i_plan * 4 + 3)
    i_row = i_coefficients * c_n + i_b * c_b
    m_row, m_column, m_corner = edges(HH, HW, BC)
    if ADD:
        a_1 = tl.zeros((HH, HW * BC), tl.float32)
        a_2 = tl.zeros((ROWS, HW * BC), tl.float32)
        a_3 = tl.zeros((HH, HW * BC), tl.float32)
        a_4 = tl.zeros((ROWS, HW * BC), tl.float32)
    else:
        p_map, r_b, r_c, r_h, r_w = map_row(p_table, i_negative, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
        b_x = load_tile(p_map + i_b * r_b, r_c, r_h, r_w, i_c, C, H, W, HP, WP, BC)
        b_cc, b_cs, b_sc, b_ss = transform(b_x, p_basis_h, p_basis_w, HP, WP, BC, PRECISION)
        a_1, a_2, a_3, a_4 = to_vector(b_cc, b_cs, b_sc, b_ss, m_row, m_column, MAGNITUDE)
        tl.debug_barrier()
        b_odd, b_even = load_bands(p_low, i_own, H, W, HH, HW, BC, QUANTILE, MAGNITUDE)
        lf, hf = tl.load(p_negative_lf + i_row), 0.0
        if not SHARED:
            hf = tl.load(p_negative_hf + i_row)
        a_1 *= by_band(b_odd, 1, lf, hf)
        a_2 *= by_band(b_even, 2, lf, hf)
        a_3 *= by_band(b_odd, 4, lf, hf)
        a_4 *= by_band(b_even, 8, lf, hf)
        t_1, t_2, t_3, t_4 = load_vector(p_vectors, i_own, H, W, HH, HW, BC, MAGNITUDE)
        lf = tl.load(p_teacher_lf + i_row)
        a_1 += by_band(b_odd, 1, lf * t_1, 0.0)
        a_2 += by_band(b_even, 2, lf * t_2, 0.0)
        a_3 += by_band(b_odd, 4, lf * t_3, 0.0)
        a_4 += by_band(b_even, 8, lf * t_4, 0.0)
    # Keeps loads from moving up, where registers are scarce.
    tl.debug_barrier()
    b_odd, b_even = load_bands(p_low, i_own, H, W, HH, HW, BC, QUANTILE, MAGNITUDE)
    for i_g in tl.range(G, disable_licm=True):
        i_tile = i_g * CHUNKS + i_chunk
        t_1, t_2, t_3, t_4 = load_vector(p_vectors, i_tile, H, W, HH, HW, BC, MAGNITUDE)
        b_out, b_out_even = b_odd, b_even
        if QUANTILE:
            t_odd, t_even = load_bands(p_target_low, i_tile, H, W, HH, HW, BC, QUANTILE, MAGNITUDE)
            b_out, b_out_even = b_out | t_odd, b_out_even | t_even
        hf = tl.load(p_targets_hf + i_row + i_g)
        a_1 += by_band(b_out, 1, 0.0, hf * t_1)
        a_2 += by_band(b_out_even, 2, 0.0, hf * t_2)
        a_3 += by_band(b_out, 4, 0.0, hf * t_3)
        a_4 += by_band(b_out_even, 8, 0.0, hf * t_4)
    tl.debug_barrier()
    if MAGNITUDE or not ADD:
        p_map, r_b, r_c, r_h, r_w = map_row(p_table, i_layer, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
        b_x = load_tile(p_map + i_b * r_b, r_c, r_h, r_w, i_c, C, H, W, HP, WP, BC)
        b_cc, b_cs, b_sc, b_ss = transform(b_x, p_basis_h, p_basis_w, HP, WP, BC, PRECISION)
        tl.debug_barrier()
        x_1, x_2, x_3, x_4 = to_components(b_cc, b_cs, b_sc, b_ss, m_row, m_column)
        if MAGNITUDE:
            a_1, a_2, a_3, a_4 = through_magnitudes(a_1, a_2, a_3, a_4, x_1, x_2, x_3, x_4, m_corner)
        if not ADD:
            # Of magnitudes too: |F| F/|F| is F.
            b_odd = load_low(p_low, i_own, HH, H, W, HW, BC, QUANTILE)
            lf, hf = tl.load(p_self_lf + i_row), tl.load(p_self_hf + i_row)
            a_1 += by_band(b_odd, 1, lf, hf) * x_1
            a_2 += by_band(b_odd, 2, lf, hf) * x_2
            a_3 += by_band(b_odd, 4, lf, hf) * x_3
            a_4 += by_band(b_odd, 8, lf, hf) * x_4
    tl.debug_barrier()
    b_cc, b_cs, b_sc, b_ss = from_components(a_1, a_2, a_3, a_4, m_row, m_column)
    b_out = inverse(b_cc, b_cs, b_sc, b_ss, p_basis_h, p_basis_w, HP, WP, BC, PRECISION)
    p_map, r_b, r_c, r_h, r_w = map_row(p_table, i_gradient, g_b, g_c, g_h, g_w, DTYPE, ALIGNED, UNIFORM)
    o_column = tl.arange(0, HP * BC)
    o_h = o_column // BC
    o_c = o_column % BC
    o_w = tl.arange(0, WP)[:, None]
    m_x = (o_w < W) & ((o_h < H) & (i_c + o_c < C))[None, :]
    p_out = p_map + i_b * r_b + i_c.to(tl.int64) * r_c + (o_w * r_w + (o_h * r_h + o_c * r_c)[None, :])
    if ADD:
        b_out += tl.load(p_out, mask=m_x, other=0.0).to(tl.float32)
    else:
        b_out *= tl.load(p_upstream + i_coefficients * u_n + i_b * u_b)
    tl.store(p_out, b_out.to(DTYPE), mask=m_x)
