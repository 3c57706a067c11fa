"""Triton kernels of the FRAMER loss for radial bands and the complex representation.

A map's tile is ``[W, H * n]``, n columns for samples and channels: a pass of the packed real DFT is a matrix product
from the left. A row of the table of maps is ``(address, stride_b, stride_c, stride_h, stride_w)``. High-passed maps are kept
times ``H W``: their inner products with maps are those of the band vectors.
"""
# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def _map(p_table, i_map, s_b, s_c, s_h, s_w, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, UNIFORM: tl.constexpr):
    """Pointer and strides of a map, or of a vector of maps."""
    p_row = p_table + i_map * 5
    address = tl.load(p_row)
    p_map = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        p_map = tl.multiple_of(p_map, 16)
    if not UNIFORM:
        s_b, s_c = tl.load(p_row + 1), tl.load(p_row + 2)
        s_h, s_w = tl.load(p_row + 3), tl.load(p_row + 4)
    return p_map, s_b, s_c, s_h, s_w


@triton.jit
def _tf32(x):
    """Rounds to nearest, for matrix units would truncate; NaN stays NaN."""
    x = x.to(tl.float32)
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x == x, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True), x)


@triton.jit
def _basis(p_basis, o_row, o_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr):
    """A matrix and what bf16 leaves of it."""
    o_matrix = o_row * COLUMNS + o_column
    b_high = tl.load(p_basis + o_matrix)
    b_low = b_high
    if PRECISION == "bf16x3":
        b_low = tl.load(p_basis + ROWS * COLUMNS + o_matrix)
    return b_high, b_low


@triton.jit
def _dot(b_high, b_low, b_x, PRECISION: tl.constexpr):
    """``matrix @ x`` in fp32."""
    if PRECISION == "bf16x3":
        if b_x.dtype == tl.bfloat16:
            out = tl.dot(b_high, b_x, tl.dot(b_low, b_x))
        else:
            x_high = b_x.to(tl.bfloat16)
            x_low = (b_x.to(tl.float32) - x_high.to(tl.float32)).to(tl.bfloat16)
            out = tl.dot(b_high, x_high, tl.dot(b_high, x_low, tl.dot(b_low, x_high)))
    elif PRECISION == "tf32":
        out = tl.dot(b_high, _tf32(b_x), input_precision="tf32")
    else:
        out = tl.dot(b_high, b_x.to(tl.float32), input_precision="ieee")
    return out


@triton.jit
def _transpose(b_x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BN: tl.constexpr):
    """``[ROWS, COLUMNS * n] -> [COLUMNS, ROWS * n]``."""
    b_x = tl.reshape(b_x, (ROWS, COLUMNS, BN))
    return tl.reshape(tl.permute(b_x, (1, 0, 2)), (COLUMNS, ROWS * BN))


@triton.jit
def _load_tile(p_map, s_c, s_h, s_w, i_c, C, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
               BC: tl.constexpr):  # fmt: skip
    o_column = tl.arange(0, HP * BC)
    o_h = o_column // BC
    o_c = o_column % BC
    o_w = tl.arange(0, WP)
    m_x = (o_w < W)[:, None] & ((o_h < H) & (i_c + o_c < C))[None, :]
    o_x = o_w[:, None] * s_w + (o_h * s_h + o_c * s_c)[None, :]
    return tl.load(p_map + i_c.to(tl.int64) * s_c + o_x, mask=m_x, other=0.0)  # [W, H*BC]


@triton.jit
def _transform(b_x, p_basis_h, p_basis_w, HH: tl.constexpr, HW: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
               BC: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The four quadrants of packed coefficients, each ``[HH, HW * BC]``: rows cos or sin by columns cos or sin."""
    o_kw = tl.arange(0, HW)[:, None]
    o_kh = tl.arange(0, HH)[:, None]
    o_w = tl.arange(0, WP)[None, :]
    o_h = tl.arange(0, HP)[None, :]
    w_high, w_low = _basis(p_basis_w, o_kw, o_w, 2 * HW, WP, PRECISION)
    b_half = _transpose(_dot(w_high, w_low, b_x, PRECISION), HW, HP, BC)  # [H, HW*BC]
    c_high, c_low = _basis(p_basis_h, o_kh, o_h, 2 * HH, HP, PRECISION)
    s_high, s_low = _basis(p_basis_h, HH + o_kh, o_h, 2 * HH, HP, PRECISION)
    b_cc = _dot(c_high, c_low, b_half, PRECISION)
    b_sc = _dot(s_high, s_low, b_half, PRECISION)
    w_high, w_low = _basis(p_basis_w, HW + o_kw, o_w, 2 * HW, WP, PRECISION)
    b_half = _transpose(_dot(w_high, w_low, b_x, PRECISION), HW, HP, BC)
    b_cs = _dot(c_high, c_low, b_half, PRECISION)
    b_ss = _dot(s_high, s_low, b_half, PRECISION)
    return b_cc, b_cs, b_sc, b_ss


@triton.jit
def _flags(p_flags, HH: tl.constexpr, HW: tl.constexpr, BC: tl.constexpr):
    """Bit q of a coefficient is set where quadrant q (cc, cs, sc, ss) is in the low band."""
    o_k = tl.arange(0, HH)[:, None] * HW + (tl.arange(0, HW * BC) // BC)[None, :]
    return tl.load(p_flags + o_k)


@triton.jit
def _products(b_flags, a_cc, a_cs, a_sc, a_ss, b_cc, b_cs, b_sc, b_ss):
    """Products of the two bands; a band is summed by itself, never as the total less the other."""
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
def _energies(b_flags, b_cc, b_cs, b_sc, b_ss, HH: tl.constexpr, HW: tl.constexpr, BC: tl.constexpr):
    """Sums over the whole spectrum of ``|F|`` in either band."""
    o_h = tl.arange(0, HH)[:, None]
    o_w = (tl.arange(0, HW * BC) // BC)[None, :]
    m_row = (o_h == 0) & (o_w >= 0)
    m_column = (o_w == 0) & (o_h >= 0)
    m_corner = m_row & m_column
    # On an edge two coefficients make a bin; inside four make two.
    b_1 = tl.where(m_row | m_column, b_cc, b_cc - b_ss)
    b_2 = tl.where(m_row, b_cs, tl.where(m_column, b_sc, b_cs + b_sc))
    b_3 = tl.where(m_row | m_column, b_ss, b_cc + b_ss)
    b_4 = tl.where(m_row, b_sc, tl.where(m_column, b_cs, b_cs - b_sc))
    b_scale = tl.where(m_row | m_column, 1.4142135623730951, 1.0)
    b_first = tl.where(m_corner, tl.abs(b_cc), b_scale * tl.sqrt(b_1 * b_1 + b_2 * b_2))
    b_second = tl.where(m_corner, tl.abs(b_ss), b_scale * tl.sqrt(b_3 * b_3 + b_4 * b_4))
    # Bit of the bin that the second pair makes: ss, but cs or sc where ss belongs to the other axis' Nyquist row.
    b_bit = tl.where(m_corner, 8, tl.where(m_row, 4, tl.where(m_column, 2, 1)))
    l_first = (b_flags & 1) != 0
    l_second = (b_flags & b_bit) != 0
    b_cs = tl.where(m_corner, tl.abs(b_cs), 0.0)
    b_sc = tl.where(m_corner, tl.abs(b_sc), 0.0)
    l_cs = (b_flags & 2) != 0
    l_sc = (b_flags & 4) != 0
    b_low = tl.where(l_first, b_first, 0.0) + tl.where(l_second, b_second, 0.0)
    b_low += tl.where(l_cs, b_cs, 0.0) + tl.where(l_sc, b_sc, 0.0)
    b_high = tl.where(l_first, 0.0, b_first) + tl.where(l_second, 0.0, b_second)
    b_high += tl.where(l_cs, 0.0, b_cs) + tl.where(l_sc, 0.0, b_sc)
    return tl.sum(b_low), tl.sum(b_high)


@triton.jit
def framer_loss_teacher_fwd_kernel(
    p_table, i_map, s_b, s_c, s_h, s_w, p_basis_h, p_basis_w, p_flags, p_high, p_low, p_sums, B, C,
    t_b, t_c, t_h, t_w,
    LH: tl.constexpr, LW: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
    BC: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, UNIFORM: tl.constexpr, PRECISION: tl.constexpr,
    STATISTICS: tl.constexpr,
):  # fmt: skip
    """High-passed map times ``H W``; with statistics also its low coefficients, energies and squared norms."""
    HH: tl.constexpr = HP // 2
    HW: tl.constexpr = WP // 2
    i_chunk, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_c = i_chunk * BC
    p_map, s_b, s_c, s_h, s_w = _map(p_table, i_map, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    b_x = _load_tile(p_map + i_b * s_b, s_c, s_h, s_w, i_c, C, H, W, HP, WP, BC)
    b_cc, b_cs, b_sc, b_ss = _transform(b_x, p_basis_h, p_basis_w, HH, HW, HP, WP, BC, PRECISION)
    b_flags = _flags(p_flags, HH, HW, BC)
    if STATISTICS:
        e_lf, e_hf = _energies(b_flags, b_cc, b_cs, b_sc, b_ss, HH, HW, BC)
        n_lf, n_hf = _products(b_flags, b_cc, b_cs, b_sc, b_ss, b_cc, b_cs, b_sc, b_ss)
        p_out = p_sums + (i_b * tl.num_programs(0) + i_chunk) * 4
        tl.store(p_out, e_lf)
        tl.store(p_out + 1, e_hf)
        tl.store(p_out + 2, n_lf)
        tl.store(p_out + 3, n_hf)
        o_kh = tl.arange(0, HH)[:, None]
        o_column = tl.arange(0, HW * BC)
        o_kw = (o_column // BC)[None, :]
        o_c = (i_c + o_column % BC)[None, :]
        p_out = p_low + i_b * (4 * LH * LW) * C + ((o_kh * LW + o_kw) * C + o_c)
        m_out = (o_kh < LH) & (o_kw < LW) & (o_c < C)
        tl.store(p_out, b_cc, mask=m_out)
        tl.store(p_out + LH * LW * C, b_cs, mask=m_out)
        tl.store(p_out + 2 * LH * LW * C, b_sc, mask=m_out)
        tl.store(p_out + 3 * LH * LW * C, b_ss, mask=m_out)
    b_cc = tl.where((b_flags & 1) != 0, 0.0, b_cc)
    b_cs = tl.where((b_flags & 2) != 0, 0.0, b_cs)
    b_sc = tl.where((b_flags & 4) != 0, 0.0, b_sc)
    b_ss = tl.where((b_flags & 8) != 0, 0.0, b_ss)
    o_kw = tl.arange(0, HW)[None, :]
    o_kh = tl.arange(0, HH)[None, :]
    o_w = tl.arange(0, WP)[:, None]
    o_h = tl.arange(0, HP)[:, None]
    c_high, c_low = _basis(p_basis_h, o_kh, o_h, 2 * HH, HP, PRECISION)  # [H, HH]
    s_high, s_low = _basis(p_basis_h, HH + o_kh, o_h, 2 * HH, HP, PRECISION)
    b_cos = _dot(c_high, c_low, b_cc, PRECISION) + _dot(s_high, s_low, b_sc, PRECISION)  # [H, HW*BC]
    b_sin = _dot(c_high, c_low, b_cs, PRECISION) + _dot(s_high, s_low, b_ss, PRECISION)
    b_cos = _transpose(b_cos, HP, HW, BC)  # [HW, H*BC]
    b_sin = _transpose(b_sin, HP, HW, BC)
    c_high, c_low = _basis(p_basis_w, o_kw, o_w, 2 * HW, WP, PRECISION)
    s_high, s_low = _basis(p_basis_w, HW + o_kw, o_w, 2 * HW, WP, PRECISION)
    b_out = _dot(c_high, c_low, b_cos, PRECISION) + _dot(s_high, s_low, b_sin, PRECISION)  # [W, H*BC]
    o_column = tl.arange(0, HP * BC)
    o_h = o_column // BC
    o_c = o_column % BC
    m_out = (o_w < W) & ((o_h < H) & (i_c + o_c < C))[None, :]
    o_out = o_w * t_w + (o_h * t_h + o_c * t_c)[None, :]
    p_out = p_high + i_b * t_b + i_c.to(tl.int64) * t_c + o_out
    tl.store(p_out, b_out.to(p_high.dtype.element_ty), mask=m_out)


@triton.jit
def framer_loss_statistics_fwd_kernel(
    p_table, p_steps, s_b, s_c, s_h, s_w, p_basis_h, p_basis_w, p_flags, p_low, p_sums, B, C, STEPS, PER_PROGRAM,
    LH: tl.constexpr, LW: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
    BC: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, UNIFORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Energies, norms and low product with the teacher of every map, and products of maps that are neighbours."""
    HH: tl.constexpr = HP // 2
    HW: tl.constexpr = WP // 2
    i_chunk, i_segment, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_c = i_chunk * BC
    y_cc = tl.zeros((HH, HW * BC), tl.float32)
    y_cs = tl.zeros((HH, HW * BC), tl.float32)
    y_sc = tl.zeros((HH, HW * BC), tl.float32)
    y_ss = tl.zeros((HH, HW * BC), tl.float32)
    first = i_segment * PER_PROGRAM
    for i_step in range(first, tl.minimum(first + PER_PROGRAM, STEPS)):
        i_map = tl.load(p_steps + i_step)
        p_map, r_b, r_c, r_h, r_w = _map(p_table, i_map, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
        b_x = _load_tile(p_map + i_b * r_b, r_c, r_h, r_w, i_c, C, H, W, HP, WP, BC)
        b_cc, b_cs, b_sc, b_ss = _transform(b_x, p_basis_h, p_basis_w, HH, HW, HP, WP, BC, PRECISION)
        b_flags = _flags(p_flags, HH, HW, BC)
        d_lf, d_hf = _products(b_flags, y_cc, y_cs, y_sc, y_ss, b_cc, b_cs, b_sc, b_ss)
        n_lf, n_hf = _products(b_flags, b_cc, b_cs, b_sc, b_ss, b_cc, b_cs, b_sc, b_ss)
        e_lf, e_hf = _energies(b_flags, b_cc, b_cs, b_sc, b_ss, HH, HW, BC)
        o_kh = tl.arange(0, HH)[:, None]
        o_column = tl.arange(0, HW * BC)
        o_kw = (o_column // BC)[None, :]
        o_c = (i_c + o_column % BC)[None, :]
        p_t = p_low + i_b * (4 * LH * LW) * C + ((o_kh * LW + o_kw) * C + o_c)
        m_t = (o_kh < LH) & (o_kw < LW) & (o_c < C)
        b_t = tl.load(p_t, mask=m_t & ((b_flags & 1) != 0), other=0.0)
        b_sum = tl.where((b_flags & 1) != 0, b_t * b_cc, 0.0)
        b_t = tl.load(p_t + LH * LW * C, mask=m_t & ((b_flags & 2) != 0), other=0.0)
        b_sum += tl.where((b_flags & 2) != 0, b_t * b_cs, 0.0)
        b_t = tl.load(p_t + 2 * LH * LW * C, mask=m_t & ((b_flags & 4) != 0), other=0.0)
        b_sum += tl.where((b_flags & 4) != 0, b_t * b_sc, 0.0)
        b_t = tl.load(p_t + 3 * LH * LW * C, mask=m_t & ((b_flags & 8) != 0), other=0.0)
        b_sum += tl.where((b_flags & 8) != 0, b_t * b_ss, 0.0)
        p_out = p_sums + ((i_b * STEPS + i_step) * tl.num_programs(0) + i_chunk) * 8
        tl.store(p_out, e_lf)
        tl.store(p_out + 1, e_hf)
        tl.store(p_out + 2, n_lf)
        tl.store(p_out + 3, n_hf)
        tl.store(p_out + 4, d_lf)
        tl.store(p_out + 5, d_hf)
        tl.store(p_out + 6, tl.sum(b_sum))
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
    p_map, s_b, s_c, s_h, s_w = _map(p_table, i_layer, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    p_map = p_map + (o_safe % B).to(tl.int64) * s_b
    if not UNIFORM:
        s_c, s_h, s_w = s_c[:, None], s_h[:, None], s_w[:, None]
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
            o_x = (i_outer // W).to(tl.int64) * s_h + (i_outer % W) * s_w + o_inner[None, :] * s_c
        else:
            o_x = i_outer.to(tl.int64) * s_c + (o_inner // W)[None, :] * s_h + (o_inner % W)[None, :] * s_w
        b_x = tl.load(p_map[:, None] + o_x, mask=m_row[:, None] & m_k[None, :], other=0.0)  # [rows, K]
        p_t = p_target[None, :] + (i_outer.to(tl.int64) * LIMIT + o_inner)[:, None]
        b_t = tl.load(p_t, mask=m_g[None, :] & m_k[:, None], other=0.0)  # [K, G]
        if PRECISION == "bf16x3":
            t_high = b_t.to(tl.bfloat16)
            t_low = (b_t.to(tl.float32) - t_high.to(tl.float32)).to(tl.bfloat16)
            x_high = b_x.to(tl.bfloat16)
            b_sum = tl.dot(x_high, t_low, b_sum)
            if tl.bfloat16 != DTYPE:
                x_low = (b_x.to(tl.float32) - x_high.to(tl.float32)).to(tl.bfloat16)
                b_sum = tl.dot(x_low, t_high, b_sum)
            b_sum = tl.dot(x_high, t_high, b_sum)
        elif PRECISION == "tf32":
            b_sum = tl.dot(_tf32(b_x), _tf32(b_t), b_sum, input_precision="tf32")
        else:
            b_sum = tl.dot(b_x.to(tl.float32), b_t.to(tl.float32), b_sum, input_precision="ieee")
    p_out = p_sums + (i_split.to(tl.int64) * ROWS + o_row[:, None]) * G + o_g[None, :]
    tl.store(p_out, b_sum, mask=m_row[:, None] & m_g[None, :])


@triton.jit
def framer_loss_gradients_bwd_kernel(
    p_table, p_plan, s_b, s_c, s_h, s_w, g_b, g_c, g_h, g_w, p_high, p_basis_h, p_basis_w, p_mask,
    p_teacher_lf, p_negative_lf, p_self_lf, p_self_hf, p_teacher_hf, p_negative_hf,
    TEACHER, B, C, G, t_b, t_c, t_h, t_w,
    LH: tl.constexpr, LW: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
    BB: tl.constexpr, BC: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, UNIFORM: tl.constexpr,
    PRECISION: tl.constexpr, SHARED: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Gradients of the students; columns of a tile are ``(h, sample, channel)``."""
    BN: tl.constexpr = BB * BC
    # Neighbouring chunks run together: they share sectors. So do all layers: one's negative is another's map.
    i_plan, i_block = tl.program_id(0) // 2, tl.program_id(1)
    i_c = (tl.program_id(2) * 2 + tl.program_id(0) % 2) * BC
    i_layer = tl.load(p_plan + i_plan * 3)
    i_negative = tl.load(p_plan + i_plan * 3 + 1)
    i_gradient = tl.load(p_plan + i_plan * 3 + 2)
    o_column = tl.arange(0, HP * BN)
    o_h = o_column // BN
    o_b = i_block * BB + (o_column // BC) % BB
    o_c = o_column % BC
    o_w = tl.arange(0, WP)[:, None]
    m_b = o_b < B
    m_x = (o_w < W) & ((o_h < H) & m_b & (i_c + o_c < C))[None, :]
    o_base = o_b.to(tl.int64)
    o_row = i_layer * B + o_b

    p_map, r_b, r_c, r_h, r_w = _map(p_table, i_layer, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    o_x = (o_base * r_b + o_h * r_h + o_c * r_c)[None, :] + o_w * r_w
    p_x = p_map + i_c.to(tl.int64) * r_c + o_x
    b_weight = tl.load(p_self_lf + o_row, mask=m_b, other=0.0) - tl.load(p_self_hf + o_row, mask=m_b, other=0.0)
    b_v = b_weight[None, :] * tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)
    p_map, r_b, r_c, r_h, r_w = _map(p_table, i_negative, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    o_x = (o_base * r_b + o_h * r_h + o_c * r_c)[None, :] + o_w * r_w
    p_y = p_map + i_c.to(tl.int64) * r_c + o_x
    b_weight = tl.load(p_negative_lf + o_row, mask=m_b, other=0.0)
    if not SHARED:
        b_weight -= tl.load(p_negative_hf + o_row, mask=m_b, other=0.0)
    b_v += b_weight[None, :] * tl.load(p_y, mask=m_x, other=0.0).to(tl.float32)
    p_map, r_b, r_c, r_h, r_w = _map(p_table, TEACHER, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    o_x = (o_base * r_b + o_h * r_h + o_c * r_c)[None, :] + o_w * r_w
    b_x = tl.load(p_map + i_c.to(tl.int64) * r_c + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_v += tl.load(p_teacher_lf + o_row, mask=m_b, other=0.0)[None, :] * b_x

    # The low band: few rows of the transform, there and back.
    o_lw = tl.arange(0, LW)
    o_lh = tl.arange(0, LH)
    o_hp = tl.arange(0, HP)
    w_high, w_low = _basis(p_basis_w, o_lw[:, None], tl.arange(0, WP)[None, :], LW, WP, PRECISION)
    b_half = _transpose(_dot(w_high, w_low, b_v, PRECISION), LW, HP, BN)  # [H, LW*n]
    h_high, h_low = _basis(p_basis_h, o_lh[:, None], o_hp[None, :], LH, HP, PRECISION)
    b_k = _dot(h_high, h_low, b_half, PRECISION)  # [LH, LW*n]
    b_mask = tl.load(p_mask + o_lh[:, None] * LW + (tl.arange(0, LW * BN) // BN)[None, :])
    b_k = tl.where(b_mask != 0, b_k, 0.0)
    h_high, h_low = _basis(p_basis_h, o_lh[None, :], o_hp[:, None], LH, HP, PRECISION)
    b_half = _transpose(_dot(h_high, h_low, b_k, PRECISION), HP, LW, BN)  # [LW, H*n]
    w_high, w_low = _basis(p_basis_w, o_lw[None, :], o_w, LW, WP, PRECISION)
    b_out = _dot(w_high, w_low, b_half, PRECISION)  # [W, H*n]

    # Read again, from cache: registers are what a tile is short of.
    b_weight = tl.load(p_self_hf + o_row, mask=m_b, other=0.0) * (H * W)
    b_out += b_weight[None, :] * tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)
    if not SHARED:
        b_weight = tl.load(p_negative_hf + o_row, mask=m_b, other=0.0) * (H * W)
        b_out += b_weight[None, :] * tl.load(p_y, mask=m_x, other=0.0).to(tl.float32)
    o_t = (o_h * t_h + o_c * t_c)[None, :] + o_w * t_w
    p_t = p_high + i_c.to(tl.int64) * t_c
    m_t = (o_w < W) & ((o_h < H) & (i_c + o_c < C))[None, :]
    for i_g in range(G):
        b_a = tl.load(p_teacher_hf + o_row.to(tl.int64) * G + i_g, mask=m_b, other=0.0)
        b_out += b_a[None, :] * tl.load(p_t + o_t, mask=m_t, other=0.0).to(tl.float32)
        p_t += t_b

    p_map, r_b, r_c, r_h, r_w = _map(p_table, i_gradient, g_b, g_c, g_h, g_w, OUT, ALIGNED, UNIFORM)
    o_x = (o_base * r_b + o_h * r_h + o_c * r_c)[None, :] + o_w * r_w
    tl.store(p_map + i_c.to(tl.int64) * r_c + o_x, b_out.to(OUT), mask=m_x)


@triton.jit
def framer_loss_targets_bwd_kernel(
    p_table, p_plan, s_b, s_c, s_h, s_w, p_high, p_weights, B, C, G,
    t_b, t_c, t_h, t_w, w_n, w_b, w_g,
    W: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, UNIFORM: tl.constexpr,
):  # fmt: skip
    """Adds ``sum_g weights[i, b, g] targets_HF[g]`` to gradients that hold a part already."""
    i_block, i_b, i_plan = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i_layer = tl.load(p_plan + i_plan * 3).to(tl.int64)
    i_gradient = tl.load(p_plan + i_plan * 3 + 2)
    blocks = tl.cdiv(C, BC)
    o_p = (i_block // blocks) * BP + tl.arange(0, BP)[:, None]
    i_c = (i_block % blocks) * BC
    o_c = tl.arange(0, BC)[None, :]
    m_x = (o_p < P) & (i_c + o_c < C)
    p_t = p_high + i_c.to(tl.int64) * t_c + ((o_p // W) * t_h + (o_p % W) * t_w + o_c * t_c)
    p_map, r_b, r_c, r_h, r_w = _map(p_table, i_gradient, s_b, s_c, s_h, s_w, DTYPE, ALIGNED, UNIFORM)
    p_x = p_map + i_b * r_b + i_c.to(tl.int64) * r_c + ((o_p // W) * r_h + (o_p % W) * r_w + o_c * r_c)
    b_out = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)
    for i_g in range(G):
        b_a = tl.load(p_weights + i_layer * w_n + i_b * w_b + i_g * w_g)
        b_out += b_a * tl.load(p_t, mask=m_x, other=0.0).to(tl.float32)
        p_t += t_b
    tl.store(p_x, b_out.to(DTYPE), mask=m_x)


@triton.jit
def _chunk_sum(p_sums, CHUNKS, FIELDS: tl.constexpr, BLOCK: tl.constexpr):
    o_chunk = tl.arange(0, BLOCK)
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, CHUNKS, BLOCK):
        b_sum += tl.load(p_sums + (first + o_chunk) * FIELDS, mask=first + o_chunk < CHUNKS, other=0.0)
    return tl.sum(b_sum)


@triton.jit
def framer_loss_sums_fwd_kernel(
    p_sums, p_teacher, p_map_step, p_pair_step, p_energy, p_norm, p_teacher_energy, p_teacher_norm,
    p_teacher_lf, p_negative_lf, p_negative_hf, M, N, B, STEPS, CHUNKS, scale_lf, scale_hf, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds up what the programs of the walk and of the teacher measured: a program for each map and sample."""
    i_m, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if i_m < M:
        p_in = p_sums + (i_b * STEPS + tl.load(p_map_step + i_m)) * CHUNKS * 8
        o_out = i_m * B + i_b
        tl.store(p_energy + o_out, _chunk_sum(p_in, CHUNKS, 8, BLOCK) * scale_lf)
        tl.store(p_energy + M * B + o_out, _chunk_sum(p_in + 1, CHUNKS, 8, BLOCK) * scale_hf)
        tl.store(p_norm + o_out, _chunk_sum(p_in + 2, CHUNKS, 8, BLOCK))
        tl.store(p_norm + M * B + o_out, _chunk_sum(p_in + 3, CHUNKS, 8, BLOCK))
        if i_m < N:
            tl.store(p_teacher_lf + o_out, _chunk_sum(p_in + 6, CHUNKS, 8, BLOCK))
            p_in = p_sums + (i_b * STEPS + tl.load(p_pair_step + i_m)) * CHUNKS * 8
            tl.store(p_negative_lf + o_out, _chunk_sum(p_in + 4, CHUNKS, 8, BLOCK))
            tl.store(p_negative_hf + o_out, _chunk_sum(p_in + 5, CHUNKS, 8, BLOCK))
    else:
        p_in = p_teacher + i_b * CHUNKS * 4
        tl.store(p_teacher_energy + i_b, _chunk_sum(p_in, CHUNKS, 4, BLOCK) * scale_lf)
        tl.store(p_teacher_energy + B + i_b, _chunk_sum(p_in + 1, CHUNKS, 4, BLOCK) * scale_hf)
        tl.store(p_teacher_norm + i_b, _chunk_sum(p_in + 2, CHUNKS, 4, BLOCK))
        tl.store(p_teacher_norm + B + i_b, _chunk_sum(p_in + 3, CHUNKS, 4, BLOCK))


@triton.jit
def framer_loss_split_sums_fwd_kernel(p_sums, p_out, SPLITS, SIZE, BS: tl.constexpr, BN: tl.constexpr):
    """Adds up what the programs of the products measured: ``[splits, n] -> [n]``."""
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    o_s = tl.arange(0, BS)
    b_sum = tl.zeros((BS, BN), tl.float32)
    for first in range(0, SPLITS, BS):
        o_in = (first + o_s).to(tl.int64)[:, None] * SIZE + o_n[None, :]
        b_sum += tl.load(p_sums + o_in, mask=(first + o_s < SPLITS)[:, None] & (o_n < SIZE)[None, :], other=0.0)
    tl.store(p_out + o_n, tl.sum(b_sum, axis=0), mask=o_n < SIZE)
