"""Triton kernels for radial bands and the complex representation.

High-passed maps are kept times ``H W``: their dot product with a map is that of the band vectors.
"""
# mypy: ignore-errors
# ruff: noqa: D103, N803

import triton
import triton.language as tl

from framer_kernels.backends.triton.transforms import (
    basis_dot,
    inverse,
    load_basis,
    load_tile,
    map_row,
    round_tf32,
    swap_sides,
    transform,
    transform_rows,
)


@triton.jit
def load_flags(p_flags, i_k, BK: tl.constexpr, HW: tl.constexpr, BC: tl.constexpr):
    """Bit q of a coefficient is set where quadrant q (cc, cs, sc, ss) is in the low band; BK rows from ``i_k`` on."""
    return tl.load(p_flags + (i_k + tl.arange(0, BK))[:, None] * HW + (tl.arange(0, HW * BC) // BC)[None, :])


@triton.jit
def band_products(b_flags, a_cc, a_cs, a_sc, a_ss, b_cc, b_cs, b_sc, b_ss):
    """Products in the two bands; each is summed by itself, never as the total less the other."""
    l_cc = (b_flags & 1) != 0
    l_cs = (b_flags & 2) != 0
    l_sc = (b_flags & 4) != 0
    l_ss = (b_flags & 8) != 0
    b_low = tl.where(l_cc, a_cc * b_cc, 0.0) + tl.where(l_cs, a_cs * b_cs, 0.0)
    b_low += tl.where(l_sc, a_sc * b_sc, 0.0) + tl.where(l_ss, a_ss * b_ss, 0.0)
    b_high = tl.where(l_cc, 0.0, a_cc * b_cc) + tl.where(l_cs, 0.0, a_cs * b_cs)
    b_high += tl.where(l_sc, 0.0, a_sc * b_sc) + tl.where(l_ss, 0.0, a_ss * b_ss)
    return tl.sum(b_low), tl.sum(b_high)


@triton.jit
def band_magnitudes(b_flags, b_cc, b_cs, b_sc, b_ss, i_k, BK: tl.constexpr, HW: tl.constexpr, BC: tl.constexpr):
    """Sums over the whole spectrum of ``|F|`` in the two bands; BK rows of the quadrants from ``i_k`` on."""
    o_h = i_k + tl.arange(0, BK)[:, None]
    o_w = (tl.arange(0, HW * BC) // BC)[None, :]
    m_row = (o_h == 0) & (o_w >= 0)
    m_column = (o_w == 0) & (o_h >= 0)
    m_corner = m_row & m_column
    m_edge = m_row | m_column
    # On an edge two coefficients make a bin; inside four make two.
    b_1 = tl.where(m_edge, b_cc, b_cc - b_ss)
    b_2 = tl.where(m_row, b_cs, tl.where(m_column, b_sc, b_cs + b_sc))
    b_3 = tl.where(m_edge, b_ss, b_cc + b_ss)
    b_4 = tl.where(m_row, b_sc, tl.where(m_column, b_cs, b_cs - b_sc))
    b_scale = tl.where(m_edge, 1.4142135623730951, 1.0)
    b_1 = tl.where(m_corner, tl.abs(b_cc), b_scale * tl.sqrt(b_1 * b_1 + b_2 * b_2))
    b_3 = tl.where(m_corner, tl.abs(b_ss), b_scale * tl.sqrt(b_3 * b_3 + b_4 * b_4))
    # Bit of the second bin: that of ss, or on an edge of the coefficient on the other axis' Nyquist row.
    b_bit = tl.where(m_corner, 8, tl.where(m_row, 4, tl.where(m_column, 2, 1)))
    l_1 = (b_flags & 1) != 0
    l_3 = (b_flags & b_bit) != 0
    b_2 = tl.where(m_corner, tl.abs(b_cs), 0.0)
    b_4 = tl.where(m_corner, tl.abs(b_sc), 0.0)
    l_2 = (b_flags & 2) != 0
    l_4 = (b_flags & 4) != 0
    b_low = tl.where(l_1, b_1, 0.0) + tl.where(l_3, b_3, 0.0) + tl.where(l_2, b_2, 0.0) + tl.where(l_4, b_4, 0.0)
    b_high = tl.where(l_1, 0.0, b_1) + tl.where(l_3, 0.0, b_3) + tl.where(l_2, 0.0, b_2) + tl.where(l_4, 0.0, b_4)
    return tl.sum(b_low), tl.sum(b_high)


@triton.jit
def low_pointers(p_low, i_b, i_c, C, i_k, LH: tl.constexpr, LW: tl.constexpr, BK: tl.constexpr, HW: tl.constexpr,
                 BC: tl.constexpr):  # fmt: skip
    """Where the first quadrant's low coefficients are kept, ``[B, 4, LH, LW, C]``, and which of a tile are."""
    o_kh = i_k + tl.arange(0, BK)[:, None]
    o_column = tl.arange(0, HW * BC)
    o_kw = (o_column // BC)[None, :]
    o_c = (i_c + o_column % BC)[None, :]
    return p_low + i_b * (4 * LH * LW) * C + ((o_kh * LW + o_kw) * C + o_c), (o_kh < LH) & (o_kw < LW) & (o_c < C)


@triton.jit
def framer_loss_teacher_fwd_kernel(
    p_table, i_map, s_b, s_c, s_h, s_w, p_basis_h, p_basis_w, p_flags, p_high, p_low, p_sums,
    B, C, t_b, t_c, t_h, t_w, scale_lf, scale_hf,
    LH: tl.constexpr, LW: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
    BC: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, UNIFORM: tl.constexpr, PRECISION: tl.constexpr,
    STATISTICS: tl.constexpr,
):  # fmt: skip
    """High-passed map; with statistics also its low coefficients, energies and squared norms."""
    HH: tl.constexpr = HP // 2
    HW: tl.constexpr = WP // 2
    i_chunk, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_c = i_chunk * BC
    p_map, r_b, r_c, r_h, r_w = map_row(p_table, i_map, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    b_x = load_tile(p_map + i_b * r_b, r_c, r_h, r_w, i_c, C, H, W, HP, WP, BC)
    b_cc, b_cs, b_sc, b_ss = transform(b_x, p_basis_h, p_basis_w, HP, WP, BC, PRECISION)
    b_flags = load_flags(p_flags, 0, HH, HW, BC)
    if STATISTICS:
        e_lf, e_hf = band_magnitudes(b_flags, b_cc, b_cs, b_sc, b_ss, 0, HH, HW, BC)
        n_lf, n_hf = band_products(b_flags, b_cc, b_cs, b_sc, b_ss, b_cc, b_cs, b_sc, b_ss)
        p_out = p_sums + i_chunk.to(tl.int64) * 4 * B + i_b
        tl.store(p_out, e_lf * scale_lf)
        tl.store(p_out + B, e_hf * scale_hf)
        tl.store(p_out + 2 * B, n_lf)
        tl.store(p_out + 3 * B, n_hf)
        p_out, m_out = low_pointers(p_low, i_b, i_c, C, 0, LH, LW, HH, HW, BC)
        tl.store(p_out, b_cc, mask=m_out)
        tl.store(p_out + LH * LW * C, b_cs, mask=m_out)
        tl.store(p_out + 2 * LH * LW * C, b_sc, mask=m_out)
        tl.store(p_out + 3 * LH * LW * C, b_ss, mask=m_out)
    b_cc = tl.where((b_flags & 1) != 0, 0.0, b_cc)
    b_cs = tl.where((b_flags & 2) != 0, 0.0, b_cs)
    b_sc = tl.where((b_flags & 4) != 0, 0.0, b_sc)
    b_ss = tl.where((b_flags & 8) != 0, 0.0, b_ss)
    b_out = inverse(b_cc, b_cs, b_sc, b_ss, p_basis_h, p_basis_w, HP, WP, BC, PRECISION)
    o_column = tl.arange(0, HP * BC)
    o_h = o_column // BC
    o_c = o_column % BC
    o_w = tl.arange(0, WP)[:, None]
    m_out = (o_w < W) & ((o_h < H) & (i_c + o_c < C))[None, :]
    p_out = p_high + i_b * t_b + i_c.to(tl.int64) * t_c + (o_w * t_w + (o_h * t_h + o_c * t_c)[None, :])
    tl.store(p_out, b_out.to(p_high.dtype.element_ty), mask=m_out)


@triton.jit
def framer_loss_statistics_fwd_kernel(
    p_table, p_steps, s_b, s_c, s_h, s_w, p_basis_h, p_basis_w, p_flags, p_low, p_sums,
    B, C, MAPS, LAYERS, STEPS, PER_PROGRAM, SUMS, scale_lf, scale_hf,
    LH: tl.constexpr, LW: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
    HS: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
    UNIFORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Energies, norms and low product with the teacher of every map, and products of maps that are neighbours.

    A step is ``(map, whether it is measured here, layer whose pair ends here or -1)``.
    """
    HW: tl.constexpr = WP // 2
    PARTS: tl.constexpr = HP // 2 // BK
    i_part, i_segment, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_c = i_part // PARTS * BC
    i_k = i_part % PARTS * BK
    p_sums += i_part.to(tl.int64) * SUMS
    y_cc = tl.zeros((BK, HW * BC), tl.float32)
    y_cs = tl.zeros((BK, HW * BC), tl.float32)
    y_sc = tl.zeros((BK, HW * BC), tl.float32)
    y_ss = tl.zeros((BK, HW * BC), tl.float32)
    first = i_segment * PER_PROGRAM
    # Matrices that were loaded before the loop would stay in registers, which are scarce.
    for i_step in tl.range(first, tl.minimum(first + PER_PROGRAM, STEPS), disable_licm=True):
        i_map = tl.load(p_steps + i_step * 3)
        measured = tl.load(p_steps + i_step * 3 + 1)
        i_pair = tl.load(p_steps + i_step * 3 + 2)
        p_map, r_b, r_c, r_h, r_w = map_row(p_table, i_map, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
        b_cc, b_cs, b_sc, b_ss = transform_rows(
            p_map + i_b * r_b, r_c, r_h, r_w, i_c, C, i_k, p_basis_h, p_basis_w, H, W, HP, WP, HS, BK, BC, PRECISION
        )
        tl.debug_barrier()
        b_flags = load_flags(p_flags, i_k, BK, HW, BC)
        if i_pair >= 0:
            d_lf, d_hf = band_products(b_flags, y_cc, y_cs, y_sc, y_ss, b_cc, b_cs, b_sc, b_ss)
            p_out = p_sums + (4 * MAPS + LAYERS + i_pair) * B + i_b
            tl.store(p_out, d_lf)
            tl.store(p_out + LAYERS * B, d_hf)
        if measured != 0:
            e_lf, e_hf = band_magnitudes(b_flags, b_cc, b_cs, b_sc, b_ss, i_k, BK, HW, BC)
            n_lf, n_hf = band_products(b_flags, b_cc, b_cs, b_sc, b_ss, b_cc, b_cs, b_sc, b_ss)
            p_out = p_sums + i_map * B + i_b
            tl.store(p_out, e_lf * scale_lf)
            tl.store(p_out + MAPS * B, e_hf * scale_hf)
            tl.store(p_out + 2 * MAPS * B, n_lf)
            tl.store(p_out + 3 * MAPS * B, n_hf)
            if i_map < LAYERS:
                p_t, m_t = low_pointers(p_low, i_b, i_c, C, i_k, LH, LW, BK, HW, BC)
                m_cc = m_t & ((b_flags & 1) != 0)
                m_cs = m_t & ((b_flags & 2) != 0)
                m_sc = m_t & ((b_flags & 4) != 0)
                m_ss = m_t & ((b_flags & 8) != 0)
                b_t = tl.load(p_t, mask=m_cc, other=0.0)
                b_sum = tl.where(m_cc, b_t * b_cc, 0.0)
                b_t = tl.load(p_t + LH * LW * C, mask=m_cs, other=0.0)
                b_sum += tl.where(m_cs, b_t * b_cs, 0.0)
                b_t = tl.load(p_t + 2 * LH * LW * C, mask=m_sc, other=0.0)
                b_sum += tl.where(m_sc, b_t * b_sc, 0.0)
                b_t = tl.load(p_t + 3 * LH * LW * C, mask=m_ss, other=0.0)
                b_sum += tl.where(m_ss, b_t * b_ss, 0.0)
                tl.store(p_sums + (4 * MAPS + i_map) * B + i_b, tl.sum(b_sum))
        y_cc, y_cs, y_sc, y_ss = b_cc, b_cs, b_sc, b_ss


@triton.jit
def framer_loss_products_fwd_kernel(
    p_table, p_layers, s_b, s_c, s_h, s_w, p_high, p_sums, ROWS, B, C, G, STEPS, PER_PROGRAM,
    W: tl.constexpr, P: tl.constexpr, BM: tl.constexpr, BG: tl.constexpr, BK: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, UNIFORM: tl.constexpr, CHANNELS_LAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products of every sample of every layer with every target: rows ``(layer, b)``, split over the positions."""
    i_m, i_split, i_g = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_row = i_m * BM + tl.arange(0, BM)
    m_row = o_row < ROWS
    o_safe = tl.where(m_row, o_row, 0)
    i_layer = tl.load(p_layers + o_safe // B)
    p_map, r_b, r_c, r_h, r_w = map_row(p_table, i_layer, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    p_map = p_map + (o_safe % B).to(tl.int64) * r_b
    if not UNIFORM:
        r_c, r_h, r_w = r_c[:, None], r_h[:, None], r_w[:, None]
    o_g = i_g * BG + tl.arange(0, BG)
    m_g = o_g < G
    p_target = p_high + o_g.to(tl.int64) * P * C
    o_k = tl.arange(0, BK)
    LIMIT = C if CHANNELS_LAST else P
    blocks = tl.cdiv(LIMIT, BK)
    b_sum = tl.zeros((BM, BG), tl.float32)
    first = i_split * PER_PROGRAM
    for i_step in range(first, tl.minimum(first + PER_PROGRAM, STEPS)):
        i_outer = i_step // blocks
        o_inner = (i_step % blocks) * BK + o_k
        m_k = o_inner < LIMIT
        if CHANNELS_LAST:
            o_x = (i_outer // W).to(tl.int64) * r_h + (i_outer % W).to(tl.int64) * r_w + o_inner[None, :] * r_c
        else:
            o_x = i_outer.to(tl.int64) * r_c + (o_inner // W)[None, :] * r_h + (o_inner % W)[None, :] * r_w
        b_x = tl.load(p_map[:, None] + o_x, mask=m_row[:, None] & m_k[None, :], other=0.0)  # [rows, K]
        p_t = p_target[None, :] + (i_outer.to(tl.int64) * LIMIT + o_inner)[:, None]
        b_t = tl.load(p_t, mask=m_g[None, :] & m_k[:, None], other=0.0)  # [K, G]
        if PRECISION == "bf16x3":
            t_high = b_t.to(tl.bfloat16)
            t_low = (b_t.to(tl.float32) - t_high.to(tl.float32)).to(tl.bfloat16)
            x_high = b_x.to(tl.bfloat16)
            b_sum = tl.dot(x_high, t_low, b_sum)
            if b_x.dtype != tl.bfloat16:
                x_low = (b_x.to(tl.float32) - x_high.to(tl.float32)).to(tl.bfloat16)
                b_sum = tl.dot(x_low, t_high, b_sum)
            b_sum = tl.dot(x_high, t_high, b_sum)
        elif PRECISION == "tf32":
            b_sum = tl.dot(round_tf32(b_x), round_tf32(b_t), b_sum, input_precision="tf32")
        else:
            b_sum = tl.dot(b_x.to(tl.float32), b_t.to(tl.float32), b_sum, input_precision="ieee")
    p_out = p_sums + (i_split.to(tl.int64) * ROWS + o_row[:, None]) * G + o_g[None, :]
    tl.store(p_out, b_sum, mask=m_row[:, None] & m_g[None, :])


@triton.jit
def load_weight(p_weight, step, samples, o_sample, BB: tl.constexpr):
    """A number for each sample of a tile, spread over the columns; 0 beyond the batch.

    Numbers are loaded one by one: a vector of them would go through shared memory to become a row of the tile.
    """
    b_weight = tl.load(p_weight)
    if BB != 1:
        b_weight = tl.where(o_sample == 0, b_weight, 0.0)
        for k in tl.static_range(1, BB):
            one = tl.load(p_weight + k * step, mask=k < samples, other=0.0)
            b_weight = tl.where(o_sample == k, one, b_weight)
    return b_weight


@triton.jit
def tile_pointers(p_map, o_b, i_c, o_h, o_c, o_w, r_b, r_c, r_h, r_w, BB: tl.constexpr):
    p_map = p_map + i_c.to(tl.int64) * r_c
    if BB == 1:
        p_tile = (p_map + o_b * r_b) + ((o_h * r_h + o_c * r_c)[None, :] + o_w * r_w)
    else:
        p_tile = p_map + ((o_b * r_b + o_h * r_h + o_c * r_c)[None, :] + o_w * r_w)
    return p_tile


@triton.jit
def framer_loss_gradients_bwd_kernel(
    p_table, p_plan, s_b, s_c, s_h, s_w, g_b, g_c, g_h, g_w, p_high, p_basis_h, p_basis_w, p_mask,
    p_teacher_lf, p_negative_lf, p_self_lf, p_self_hf, p_teacher_hf, p_negative_hf, p_upstream, c_n, c_b, u_n, u_b,
    TEACHER, LAYERS, B, C, G, t_b, t_c, t_h, t_w,
    LH: tl.constexpr, LW: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
    HS: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr, TOGETHER: tl.constexpr, SHARED: tl.constexpr,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, UNIFORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the students, HS rows of the maps at a time; columns of a tile are ``(h, sample, channel)``.

    A row of the plan is ``(student, its negative, gradient)``, indices of maps. With SHARED the high-band part of the
    negatives is not added here.
    """
    BN: tl.constexpr = BB * BC
    # All layers of a few neighbouring chunks run together: a layer's negative is in the cache.
    i_0, i_block = tl.program_id(0), tl.program_id(1)
    i_plan = (i_0 // TOGETHER) % LAYERS
    i_c = (i_0 // TOGETHER // LAYERS * TOGETHER + i_0 % TOGETHER) * BC
    i_layer = tl.load(p_plan + i_plan * 3)
    i_negative = tl.load(p_plan + i_plan * 3 + 1)
    i_gradient = tl.load(p_plan + i_plan * 3 + 2)
    o_column = tl.arange(0, HS * BN)
    o_c = o_column % BC
    o_w = tl.arange(0, WP)[:, None]
    m_c = i_c + o_c < C
    if BB == 1:
        o_b = i_block.to(tl.int64)
    else:
        o_b = i_block * BB + (o_column // BC) % BB
        m_c = m_c & (o_b < B)
        o_b = o_b.to(tl.int64)
    o_sample = ((o_column // BC) % BB)[None, :]
    samples = B - i_block * BB
    o_first = i_layer * c_n + i_block * BB * c_b
    b_up = load_weight(p_upstream + i_layer * u_n + i_block * BB * u_b, u_b, samples, o_sample, BB)
    p_x, x_b, x_c, x_h, x_w = map_row(p_table, i_layer, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    p_y, y_b, y_c, y_h, y_w = map_row(p_table, i_negative, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)

    # The low band of a combination of maps: few rows of the transform. What is read here is read again below, from the
    # cache, for registers are what a tile is short of.
    o_lw = tl.arange(0, LW)
    o_lh = tl.arange(0, LH)
    o_hs = tl.arange(0, HS)
    w_high, w_low = load_basis(p_basis_w, o_lw[:, None], tl.arange(0, WP)[None, :], LW, WP, PRECISION)
    p_t, z_b, z_c, z_h, z_w = map_row(p_table, TEACHER, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    a_x = load_weight(p_self_lf + o_first, c_b, samples, o_sample, BB)
    a_x -= load_weight(p_self_hf + o_first, c_b, samples, o_sample, BB)
    a_y = load_weight(p_negative_lf + o_first, c_b, samples, o_sample, BB)
    if not SHARED:
        a_y -= load_weight(p_negative_hf + o_first, c_b, samples, o_sample, BB)
    a_t = load_weight(p_teacher_lf + o_first, c_b, samples, o_sample, BB)
    b_k = tl.zeros((LH, LW * BN), tl.float32)
    for i_h in range(0, HP, HS):
        o_h = i_h + o_column // BN
        m_x = (o_w < W) & (m_c & (o_h < H))[None, :]
        p_tile = tile_pointers(p_x, o_b, i_c, o_h, o_c, o_w, x_b, x_c, x_h, x_w, BB)
        b_v = a_x * tl.load(p_tile, mask=m_x, other=0.0, eviction_policy="evict_last").to(tl.float32)  # [W, HS*n]
        p_tile = tile_pointers(p_y, o_b, i_c, o_h, o_c, o_w, y_b, y_c, y_h, y_w, BB)
        b_v += a_y * tl.load(p_tile, mask=m_x, other=0.0, eviction_policy="evict_last").to(tl.float32)
        p_tile = tile_pointers(p_t, o_b, i_c, o_h, o_c, o_w, z_b, z_c, z_h, z_w, BB)
        b_v += a_t * tl.load(p_tile, mask=m_x, other=0.0).to(tl.float32)
        b_half = swap_sides(basis_dot(w_high, w_low, b_v, PRECISION), LW, HS, BN)  # [HS, LW*n]
        h_high, h_low = load_basis(p_basis_h, o_lh[:, None], i_h + o_hs[None, :], LH, HP, PRECISION)
        b_k += basis_dot(h_high, h_low, b_half, PRECISION)
    b_mask = tl.load(p_mask + o_lh[:, None] * LW + (tl.arange(0, LW * BN) // BN)[None, :])
    b_k = tl.where(b_mask != 0, b_k, 0.0)

    a_x = (H * W) * load_weight(p_self_hf + o_first, c_b, samples, o_sample, BB)
    if not SHARED:
        a_y = (H * W) * load_weight(p_negative_hf + o_first, c_b, samples, o_sample, BB)
    p_g, r_b, r_c, r_h, r_w = map_row(p_table, i_gradient, g_b, g_c, g_h, g_w, DTYPE, ALIGNED, UNIFORM)
    for i_h in range(0, HP, HS):
        o_h = i_h + o_column // BN
        m_h = (o_h < H)[None, :]
        m_x = (o_w < W) & m_c[None, :] & m_h
        p_tile = tile_pointers(p_x, o_b, i_c, o_h, o_c, o_w, x_b, x_c, x_h, x_w, BB)
        b_out = a_x * tl.load(p_tile, mask=m_x, other=0.0).to(tl.float32)  # [W, HS*n]
        if not SHARED:
            p_tile = tile_pointers(p_y, o_b, i_c, o_h, o_c, o_w, y_b, y_c, y_h, y_w, BB)
            b_out += a_y * tl.load(p_tile, mask=m_x, other=0.0).to(tl.float32)
        p_tile = p_high + i_c.to(tl.int64) * t_c + ((o_h * t_h + o_c * t_c)[None, :] + o_w * t_w)
        m_t = (o_w < W) & (i_c + o_c < C)[None, :] & m_h
        for i_g in range(G):
            b_a = load_weight(p_teacher_hf + o_first + i_g, c_b, samples, o_sample, BB)
            b_out += b_a * tl.load(p_tile, mask=m_t, other=0.0).to(tl.float32)
            p_tile += t_b
        k_high, k_low = load_basis(p_basis_h, o_lh[None, :], i_h + o_hs[:, None], LH, HP, PRECISION)
        b_half = swap_sides(basis_dot(k_high, k_low, b_k, PRECISION), HS, LW, BN)  # [LW, HS*n]
        k_high, k_low = load_basis(p_basis_w, o_lw[None, :], o_w, LW, WP, PRECISION)
        b_out += basis_dot(k_high, k_low, b_half, PRECISION)
        p_tile = tile_pointers(p_g, o_b, i_c, o_h, o_c, o_w, r_b, r_c, r_h, r_w, BB)
        tl.store(p_tile, (b_up * b_out).to(DTYPE), mask=m_x)


@triton.jit
def framer_loss_targets_bwd_kernel(
    p_table, p_plan, s_b, s_c, s_h, s_w, p_high, p_weights, C, G, t_b, t_c, t_h, t_w, w_n, w_b, w_g,
    W: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, UNIFORM: tl.constexpr,
):  # fmt: skip
    """Adds ``sum_g weights[i, b, g] targets_HF[g]`` to gradients that hold a part already.

    A row of the plan is ``(row of the weights, gradient)``.
    """
    i_block, i_b, i_plan = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i_weights = tl.load(p_plan + i_plan * 2)
    i_gradient = tl.load(p_plan + i_plan * 2 + 1)
    blocks = tl.cdiv(C, BC)
    o_p = (i_block // blocks) * BP + tl.arange(0, BP)[:, None]
    i_c = (i_block % blocks) * BC
    o_c = tl.arange(0, BC)[None, :]
    m_x = (o_p < P) & (i_c + o_c < C)
    p_t = p_high + i_c.to(tl.int64) * t_c + ((o_p // W) * t_h + (o_p % W) * t_w + o_c * t_c)
    p_x, r_b, r_c, r_h, r_w = map_row(p_table, i_gradient, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    p_x = p_x + i_b * r_b + i_c.to(tl.int64) * r_c + ((o_p // W) * r_h + (o_p % W) * r_w + o_c * r_c)
    p_a = p_weights + i_weights * w_n + i_b * w_b
    b_out = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)
    for _ in range(G):
        b_out += tl.load(p_a) * tl.load(p_t, mask=m_x, other=0.0).to(tl.float32)
        p_a += w_g
        p_t += t_b
    tl.store(p_x, b_out.to(DTYPE), mask=m_x)
