"""Reading maps and the packed real DFT, there and back: what all Triton kernels of the loss are made of.

A map's tile is ``[W, H * n]``, n columns for samples and channels, so that a pass of the packed real DFT is a matrix
product from the left. A row of the table of maps is ``(address, stride_b, stride_c, stride_h, stride_w)``.
"""
# mypy: ignore-errors
# ruff: noqa: D103, N803

import triton
import triton.language as tl


@triton.jit
def map_row(p_table, i_map, s_b, s_c, s_h, s_w, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, UNIFORM: tl.constexpr):
    """Pointer and strides of a map, or of a vector of maps."""
    p_row = p_table + i_map * 5
    p_map = tl.load(p_row).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        p_map = tl.multiple_of(p_map, 16)
    if not UNIFORM:
        s_b, s_c = tl.load(p_row + 1), tl.load(p_row + 2)
        s_h, s_w = tl.load(p_row + 3), tl.load(p_row + 4)
    return p_map, s_b, s_c, s_h, s_w


@triton.jit
def round_tf32(x):
    """Rounds to nearest, because matrix units would truncate; NaN stays NaN."""
    x = x.to(tl.float32)
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x == x, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True), x)


@triton.jit
def load_basis(p_basis, o_row, o_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr):
    """A part of a matrix, and of what rounding to bf16 left of it."""
    o_matrix = o_row * COLUMNS + o_column
    b_high = tl.load(p_basis + o_matrix)
    b_low = b_high
    if PRECISION == "bf16x3":
        b_low = tl.load(p_basis + ROWS * COLUMNS + o_matrix)
    return b_high, b_low


@triton.jit
def basis_dot(b_high, b_low, b_x, PRECISION: tl.constexpr):
    """``matrix @ x`` in fp32."""
    if PRECISION == "bf16x3":
        if b_x.dtype == tl.bfloat16:
            out = tl.dot(b_high, b_x, tl.dot(b_low, b_x))
        else:
            x_high = b_x.to(tl.bfloat16)
            x_low = (b_x.to(tl.float32) - x_high.to(tl.float32)).to(tl.bfloat16)
            out = tl.dot(b_high, x_high, tl.dot(b_high, x_low, tl.dot(b_low, x_high)))
    elif PRECISION == "tf32":
        out = tl.dot(b_high, round_tf32(b_x), input_precision="tf32")
    else:
        out = tl.dot(b_high, b_x.to(tl.float32), input_precision="ieee")
    return out


@triton.jit
def swap_sides(b_x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BN: tl.constexpr):
    """``[ROWS, COLUMNS * n] -> [COLUMNS, ROWS * n]``."""
    b_x = tl.reshape(b_x, (ROWS, COLUMNS, BN))
    return tl.reshape(tl.permute(b_x, (1, 0, 2)), (COLUMNS, ROWS * BN))


@triton.jit
def transform(b_x, p_basis_h, p_basis_w, HP: tl.constexpr, WP: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr):
    """The four quadrants of packed coefficients, each ``[HP/2, WP/2 * n]``: rows cos or sin by columns cos or sin."""
    HH: tl.constexpr = HP // 2
    HW: tl.constexpr = WP // 2
    o_kw = tl.arange(0, HW)[:, None]
    o_kh = tl.arange(0, HH)[:, None]
    o_w = tl.arange(0, WP)[None, :]
    o_h = tl.arange(0, HP)[None, :]
    w_high, w_low = load_basis(p_basis_w, o_kw, o_w, WP, WP, PRECISION)
    b_cos = swap_sides(basis_dot(w_high, w_low, b_x, PRECISION), HW, HP, BC)  # [H, W/2*n]
    w_high, w_low = load_basis(p_basis_w, HW + o_kw, o_w, WP, WP, PRECISION)
    b_sin = swap_sides(basis_dot(w_high, w_low, b_x, PRECISION), HW, HP, BC)
    c_high, c_low = load_basis(p_basis_h, o_kh, o_h, HP, HP, PRECISION)
    s_high, s_low = load_basis(p_basis_h, HH + o_kh, o_h, HP, HP, PRECISION)
    b_cc = basis_dot(c_high, c_low, b_cos, PRECISION)
    b_sc = basis_dot(s_high, s_low, b_cos, PRECISION)
    b_cs = basis_dot(c_high, c_low, b_sin, PRECISION)
    b_ss = basis_dot(s_high, s_low, b_sin, PRECISION)
    return b_cc, b_cs, b_sc, b_ss


@triton.jit
def inverse(b_cc, b_cs, b_sc, b_ss, p_basis_h, p_basis_w, HP: tl.constexpr, WP: tl.constexpr, BC: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """The transpose of `transform`: ``[W, H*n]``."""
    HH: tl.constexpr = HP // 2
    HW: tl.constexpr = WP // 2
    o_kw = tl.arange(0, HW)[None, :]
    o_kh = tl.arange(0, HH)[None, :]
    o_w = tl.arange(0, WP)[:, None]
    o_h = tl.arange(0, HP)[:, None]
    c_high, c_low = load_basis(p_basis_h, o_kh, o_h, HP, HP, PRECISION)  # [H, HP/2]
    s_high, s_low = load_basis(p_basis_h, HH + o_kh, o_h, HP, HP, PRECISION)
    b_cos = basis_dot(c_high, c_low, b_cc, PRECISION) + basis_dot(s_high, s_low, b_sc, PRECISION)  # [H, W/2*n]
    b_sin = basis_dot(c_high, c_low, b_cs, PRECISION) + basis_dot(s_high, s_low, b_ss, PRECISION)
    b_cos = swap_sides(b_cos, HP, HW, BC)  # [W/2, H*n]
    b_sin = swap_sides(b_sin, HP, HW, BC)
    c_high, c_low = load_basis(p_basis_w, o_kw, o_w, WP, WP, PRECISION)
    s_high, s_low = load_basis(p_basis_w, HW + o_kw, o_w, WP, WP, PRECISION)
    return basis_dot(c_high, c_low, b_cos, PRECISION) + basis_dot(s_high, s_low, b_sin, PRECISION)  # [W, H*n]


@triton.jit
def transform_rows(p_map, s_c, s_h, s_w, i_c, C, i_k, p_basis_h, p_basis_w, H: tl.constexpr, W: tl.constexpr,
                   HP: tl.constexpr, WP: tl.constexpr, HS: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    """BK rows of each quadrant from row ``i_k`` on, ``[BK, WP/2 * n]``; reads HS rows of the map at a time."""
    HH: tl.constexpr = HP // 2
    HW: tl.constexpr = WP // 2
    o_kw = tl.arange(0, HW)[:, None]
    o_k = i_k + tl.arange(0, BK)[:, None]
    o_wp = tl.arange(0, WP)[None, :]
    o_column = tl.arange(0, HS * BC)
    o_c = o_column % BC
    o_w = tl.arange(0, WP)[:, None]
    b_cc = tl.zeros((BK, HW * BC), tl.float32)
    b_cs = tl.zeros((BK, HW * BC), tl.float32)
    b_sc = tl.zeros((BK, HW * BC), tl.float32)
    b_ss = tl.zeros((BK, HW * BC), tl.float32)
    p_map += i_c.to(tl.int64) * s_c
    for i_h in range(0, HP, HS):
        o_h = i_h + o_column // BC
        m_x = (o_w < W) & ((o_h < H) & (i_c + o_c < C))[None, :]
        b_x = tl.load(p_map + (o_w * s_w + (o_h * s_h + o_c * s_c)[None, :]), mask=m_x, other=0.0)  # [W, HS*n]
        o_hs = i_h + tl.arange(0, HS)[None, :]
        c_high, c_low = load_basis(p_basis_h, o_k, o_hs, HP, HP, PRECISION)
        s_high, s_low = load_basis(p_basis_h, HH + o_k, o_hs, HP, HP, PRECISION)
        w_high, w_low = load_basis(p_basis_w, o_kw, o_wp, WP, WP, PRECISION)
        b_half = swap_sides(basis_dot(w_high, w_low, b_x, PRECISION), HW, HS, BC)  # [HS, W/2*n]
        b_cc += basis_dot(c_high, c_low, b_half, PRECISION)
        b_sc += basis_dot(s_high, s_low, b_half, PRECISION)
        w_high, w_low = load_basis(p_basis_w, HW + o_kw, o_wp, WP, WP, PRECISION)
        b_half = swap_sides(basis_dot(w_high, w_low, b_x, PRECISION), HW, HS, BC)
        b_cs += basis_dot(c_high, c_low, b_half, PRECISION)
        b_ss += basis_dot(s_high, s_low, b_half, PRECISION)
    return b_cc, b_cs, b_sc, b_ss


@triton.jit
def load_tile(p_map, s_c, s_h, s_w, i_c, C, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
              BC: tl.constexpr):  # fmt: skip
    o_column = tl.arange(0, HP * BC)
    o_h = o_column // BC
    o_c = o_column % BC
    o_w = tl.arange(0, WP)
    m_x = (o_w < W)[:, None] & ((o_h < H) & (i_c + o_c < C))[None, :]
    o_x = o_w[:, None] * s_w + (o_h * s_h + o_c * s_c)[None, :]
    return tl.load(p_map + i_c.to(tl.int64) * s_c + o_x, mask=m_x, other=0.0)  # [W, H*n]
