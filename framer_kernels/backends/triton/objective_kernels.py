"""The loss as a function of the measured products, and its derivatives: one program for each layer and sample."""
# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def _log1p_exp(x):
    """``log(1 + e^x)``, exact where it is near zero, too."""
    b_e = tl.exp(-tl.abs(x))
    b_u = 1.0 + b_e
    b_log = tl.where(b_u == 1.0, b_e, tl.log(b_u) * (b_e / (b_u - 1.0)))
    return tl.maximum(x, 0.0) + b_log


@triton.jit
def _sigmoid(x):
    return tl.where(x >= 0.0, 1.0 / (1.0 + tl.exp(-x)), tl.exp(x) / (1.0 + tl.exp(x)))


@triton.jit
def _norm(square, FLOOR: tl.constexpr):
    return tl.maximum(tl.sqrt_rn(square), FLOOR)


@triton.jit
def _has_direction(square, total, FLOOR: tl.constexpr, ROUNDING: tl.constexpr):
    return (square > FLOOR * FLOOR) & (square > ROUNDING * ROUNDING * total)


@triton.jit
def _weight(e_t, e_x, FAW: tl.constexpr, EPS: tl.constexpr):
    delta = tl.abs(e_t - e_x)
    if FAW == "relative_student":
        delta = delta / (e_x + EPS)
    elif FAW == "relative_teacher":
        delta = delta / (e_t + EPS)
    elif FAW == "none":
        delta = e_x * 0.0
    return 1.0 / (1.0 + delta)


@triton.jit
def framer_loss_objective_fwd_kernel(
    p_energy, p_norm, p_teacher_energy, p_teacher_norm, p_teacher_lf, p_teacher_hf, p_negative_lf, p_negative_hf,
    p_target_norm, p_target_negatives, p_chosen, p_losses, p_diagnostics, p_coefficients,
    N, M, B, G, D, own_first, temperature, share,
    BG: tl.constexpr, FAW: tl.constexpr, FAM: tl.constexpr, INTRA: tl.constexpr, INTER: tl.constexpr,
    SHARED: tl.constexpr, LOCAL: tl.constexpr, FLOOR: tl.constexpr, EPS: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    """Losses ``[N, B]``, diagnostics ``[8, N, B]`` and coefficients ``[N, B, D]``."""
    i_n, i_b = tl.program_id(0), tl.program_id(1)
    i_negative = tl.load(p_chosen + i_n)
    o_x = i_n * B + i_b
    own = own_first + i_b
    n2_lf, n2_hf = tl.load(p_norm + o_x), tl.load(p_norm + M * B + o_x)
    live_lf = _has_direction(n2_lf, n2_lf + n2_hf, FLOOR, ROUNDING)
    live_hf = _has_direction(n2_hf, n2_lf + n2_hf, FLOOR, ROUNDING)
    x_lf, x_hf = _norm(n2_lf, FLOOR), _norm(n2_hf, FLOOR)
    t_lf = _norm(tl.load(p_teacher_norm + i_b), FLOOR)
    n_lf = _norm(tl.load(p_norm + i_negative * B + i_b), FLOOR)

    positive_lf = live_lf.to(tl.float32) * tl.load(p_teacher_lf + o_x) / (x_lf * t_lf)
    negative_lf = live_lf.to(tl.float32) * tl.load(p_negative_lf + o_x) / (x_lf * n_lf)
    difference = (negative_lf - positive_lf) / temperature
    intra = _log1p_exp(difference)

    # In-batch targets in a row; the negative is a number, or with shared negatives another row.
    o_g = tl.arange(0, BG)
    m_g = o_g < G
    o_row = o_x.to(tl.int64) * G
    b_t = _norm(tl.load(p_target_norm + o_g, mask=m_g, other=1.0), FLOOR)
    b_cos = live_hf.to(tl.float32) * tl.load(p_teacher_hf + o_row + o_g, mask=m_g, other=0.0) / (x_hf * b_t)
    b_own = o_g == own
    positive_hf = tl.sum(tl.where(b_own, b_cos, 0.0))
    b_exponent = tl.where(m_g & (o_g != own), (b_cos - positive_hf) / temperature, float("-inf"))
    p_n = p_norm + M * B + i_negative * B if LOCAL else p_target_negatives + i_n * G
    if SHARED:
        b_n = _norm(tl.load(p_n + o_g, mask=m_g, other=1.0), FLOOR)
        b_other = live_hf.to(tl.float32) * tl.load(p_negative_hf + o_row + o_g, mask=m_g, other=0.0) / (x_hf * b_n)
        b_other_exponent = tl.where(m_g, (b_other - positive_hf) / temperature, float("-inf"))
        highest = tl.maximum(tl.max(b_exponent), tl.max(b_other_exponent))
        total = tl.sum(tl.exp(b_exponent - highest)) + tl.sum(tl.exp(b_other_exponent - highest))
    else:
        b_n = _norm(tl.load(p_n + own), FLOOR)
        b_other = live_hf.to(tl.float32) * tl.load(p_negative_hf + o_x) / (x_hf * b_n)
        b_other_exponent = (b_other - positive_hf) / temperature
        highest = tl.maximum(tl.max(b_exponent), b_other_exponent)
        total = tl.sum(tl.exp(b_exponent - highest)) + tl.exp(b_other_exponent - highest)
    inter = _log1p_exp(highest + tl.log(total))

    e_lf, e_hf = tl.load(p_energy + o_x), tl.load(p_energy + M * B + o_x)
    w_lf = _weight(tl.load(p_teacher_energy + i_b), e_lf, FAW, EPS)
    w_hf = _weight(tl.load(p_teacher_energy + B + i_b), e_hf, FAW, EPS)
    align_lf, align_hf = tl.maximum(positive_lf, 0.0), tl.maximum(positive_hf, 0.0)
    gate_lf, gate_hf = w_lf, w_hf
    if FAM:
        gate_lf, gate_hf = w_lf * align_lf, w_hf * align_hf
    # A term that is left out is not there, instead of 0 times what may be NaN.
    if not INTRA:
        live_lf = live_lf & (i_n < 0)
        loss = gate_hf * inter
    elif not INTER:
        loss = gate_lf * intra
    else:
        loss = gate_lf * intra + gate_hf * inter
    tl.store(p_losses + o_x, loss)
    p_out = p_diagnostics + o_x
    tl.store(p_out, intra)
    tl.store(p_out + N * B, inter)
    tl.store(p_out + 2 * N * B, w_lf)
    tl.store(p_out + 3 * N * B, w_hf)
    tl.store(p_out + 4 * N * B, align_lf)
    tl.store(p_out + 5 * N * B, align_hf)
    tl.store(p_out + 6 * N * B, e_lf)
    tl.store(p_out + 7 * N * B, e_hf)

    slope = share * gate_lf * _sigmoid(difference) / temperature
    scale = share * gate_hf / temperature
    p_out = p_coefficients + o_x.to(tl.int64) * D
    tl.store(p_out, tl.where(live_lf, -slope / (x_lf * t_lf), 0.0))
    tl.store(p_out + 1, tl.where(live_lf, slope / (x_lf * n_lf), 0.0))
    tl.store(p_out + 2, tl.where(live_lf, slope * (positive_lf - negative_lf) / (x_lf * x_lf), 0.0))
    if not INTER:
        tl.store(p_out + 3, 0.0)
        tl.store(p_out + 4, 0.0)
    else:
        b_slope = scale * tl.exp(b_exponent - inter)
        b_other_slope = scale * tl.exp(b_other_exponent - inter)
        pull = -tl.sum(b_slope)
        if SHARED:
            pull -= tl.sum(b_other_slope)
        else:
            pull -= b_other_slope
        b_slope = tl.where(b_own, pull, b_slope)
        onto = tl.sum(b_slope * b_cos)
        if SHARED:
            onto += tl.sum(b_other_slope * b_other)
            tl.store(p_out + 4 + G + o_g, tl.where(live_hf, b_other_slope / (x_hf * b_n), 0.0), mask=m_g)
        else:
            onto += b_other_slope * b_other
            tl.store(p_out + 4 + G, tl.where(live_hf, b_other_slope / (x_hf * b_n), 0.0))
        tl.store(p_out + 4 + o_g, tl.where(live_hf, b_slope / (x_hf * b_t), 0.0), mask=m_g)
        tl.store(p_out + 3, tl.where(live_hf, -onto / (x_hf * x_hf), 0.0))
