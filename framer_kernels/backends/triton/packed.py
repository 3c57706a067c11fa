"""The backend's functions for radial bands and the ``complex`` representation, which form no bins.

Arguments, results and errors are those of `framer_kernels.backends.ProductsBackend`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from framer_kernels.backends.triton import packed_kernels
from framer_kernels.backends.triton.addresses import MapTable, alike, device_guard, is_channels_last, parts, upload
from framer_kernels.backends.triton.configs import (
    COMPILER,
    GradientConfig,
    ProductConfig,
    StatisticsConfig,
    TargetConfig,
    TransformConfig,
    power_of_two,
)
from framer_kernels.backends.triton.limits import DTYPES, check
from framer_kernels.backends.triton.sums import sums_of_parts
from framer_kernels.backends.triton.tables import ForwardTables, forward_tables, low_tables
from framer_kernels.backends.triton.walks import WALKS, Walk
from framer_kernels.bands import BandSplit
from framer_kernels.products import BandProducts, GradientCoefficients
from framer_kernels.types import Representation


def _packed_strides(channels_last: bool, channels: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Strides of high-passed maps in scratch: the axis that is contiguous in the maps is so here."""
    area = height * width
    if channels_last:
        return area * channels, 1, width * channels, channels
    return area * channels, area, width, 1


def _forward(teacher: Tensor, bands: BandSplit, precision: str) -> tuple[TransformConfig, ForwardTables]:
    height, width = teacher.shape[-2:]
    config = TransformConfig.choose(height, width, precision)
    tables = forward_tables(height, width, config.height, config.width, bands, precision, teacher.device)
    return config, tables


def _meta(table: MapTable, dtype: torch.dtype) -> dict[str, Any]:
    return {"DTYPE": DTYPES[dtype], "ALIGNED": table.aligned, "UNIFORM": table.uniform, **COMPILER}


def _high_pass(
    x: Tensor,
    table: MapTable,
    rows: Tensor,
    index: int,
    *,
    bands: BandSplit,
    precision: str,
    channels_last: bool,
    dtype: torch.dtype,
    statistics: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """High-passed map ``index`` of the table; its low coefficients and parts of its sums, empty unless asked for."""
    batch, channels, height, width = x.shape
    config, tables = _forward(x, bands, precision)
    chunks = triton.cdiv(channels, config.channels)
    high = torch.empty(batch * channels * height * width, dtype=dtype, device=x.device)
    asked = int(statistics)
    low = torch.empty(asked * batch * 4 * tables.low_h * tables.low_w * channels, dtype=torch.float32, device=x.device)
    sums = torch.empty(asked * chunks, 4 * batch, dtype=torch.float32, device=x.device)
    packed_kernels.framer_loss_teacher_fwd_kernel[(chunks, batch)](
        rows, index, *table.strides, tables.basis_h, tables.basis_w, tables.flags, high, low, sums,
        batch, channels, *_packed_strides(channels_last, channels, height, width),
        *(scale / channels for scale in tables.energy_scales),
        LH=tables.low_h, LW=tables.low_w, H=height, W=width, HP=config.height, WP=config.width, BC=config.channels,
        PRECISION=precision, STATISTICS=statistics, num_warps=config.num_warps, num_stages=1,
        **_meta(table, x.dtype),
    )  # fmt: skip
    return high, low, sums


def _partial_products(
    x: Tensor,
    table: MapTable,
    rows: Tensor,
    layers: Tensor,
    high: Tensor,
    targets: int,
    *,
    channels_last: bool,
    precision: str,
) -> Tensor:
    """Parts of ``<u_HF(x_i[b]), u_HF(y[g])>`` of the layers listed, ``[parts, n * B * G]``."""
    batch, channels, height, width = x.shape
    count = len(layers) * batch
    config = ProductConfig.choose(count, targets)
    area = height * width
    outer, inner = (area, channels) if channels_last else (channels, area)
    steps = outer * triton.cdiv(inner, config.inner)
    row_blocks, target_blocks = triton.cdiv(count, config.rows), triton.cdiv(targets, config.targets)
    per_program = triton.cdiv(steps, max(1, min(steps, config.programs // (row_blocks * target_blocks))))
    splits = triton.cdiv(steps, per_program)
    sums = torch.empty(splits, count * targets, dtype=torch.float32, device=x.device)
    packed_kernels.framer_loss_products_fwd_kernel[(row_blocks, splits, target_blocks)](
        rows, layers, *table.strides, high, sums, count, batch, channels, targets, steps, per_program,
        W=width, P=area, BM=config.rows, BG=config.targets, BK=config.inner, CHANNELS_LAST=channels_last,
        PRECISION=precision, num_warps=config.num_warps, num_stages=3, **_meta(table, x.dtype),
    )  # fmt: skip
    return sums


def measure(
    maps: Sequence[Tensor],
    teacher: Tensor,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: Representation,
    shared_negatives: bool,
    precision: str,
) -> BandProducts:
    """Measures the maps of one rank."""
    check(teacher, precision)
    batch, channels = teacher.shape[:2]
    count, layers = len(maps), len(negatives)
    channels_last = is_channels_last(teacher)
    height, width = teacher.shape[2:]
    config = StatisticsConfig.choose(height, width, teacher.element_size(), precision)
    tables = forward_tables(height, width, config.height, config.width, bands, precision, teacher.device)
    programs = triton.cdiv(channels, config.channels) * (config.height // 2 // config.frequencies)
    walk = Walk.over(negatives, count, max(1, WALKS // (batch * programs)))
    table = MapTable.of([*maps, teacher])
    sizes = [2 * count * batch, 2 * count * batch, layers * batch, layers * batch, layers * batch]
    with device_guard(teacher.device):
        numbers = upload([*table.rows, *(n for step in walk.steps for n in step), *range(layers)], teacher.device)
        rows, steps, chosen = parts(numbers, [len(table.rows), 3 * len(walk.steps), layers])
        high, low, teacher_sums = _high_pass(
            teacher, table, rows, count, bands=bands, precision=precision, channels_last=channels_last,
            dtype=torch.float32, statistics=True,
        )  # fmt: skip
        sums = torch.empty(programs, sum(sizes), dtype=torch.float32, device=teacher.device)
        packed_kernels.framer_loss_statistics_fwd_kernel[(programs, walk.programs, batch)](
            rows, steps, *table.strides, tables.basis_h, tables.basis_w, tables.flags, low, sums, batch, channels,
            count, layers, len(walk.steps), walk.length, sums.shape[1],
            *(scale / channels for scale in tables.energy_scales), LH=tables.low_h, LW=tables.low_w,
            H=height, W=width, HP=config.height, WP=config.width, HS=config.rows, BK=config.frequencies,
            BC=config.channels, PRECISION=precision, num_warps=config.num_warps, num_stages=1,
            **_meta(table, teacher.dtype),
        )  # fmt: skip
        products = _partial_products(
            teacher, table, rows, chosen, high, batch, channels_last=channels_last, precision=precision
        )
        out = sums_of_parts(sums, teacher_sums, products)
        energy, norms, dot_lf, pair_lf, pair_hf, teacher_energy, teacher_norms, dot_hf = parts(
            out, [*sizes, 2 * batch, 2 * batch, layers * batch * batch]
        )
        negative_dot_hf = pair_hf.view(layers, batch, 1)
        if shared_negatives:
            negative_dot_hf = torch.empty(layers, batch, batch, dtype=torch.float32, device=teacher.device)
            for j in sorted(set(negatives)):
                like = [i for i in range(layers) if negatives[i] == j]
                high, *_ = _high_pass(
                    maps[j], table, rows, j, bands=bands, precision=precision, channels_last=channels_last,
                    dtype=torch.float32,
                )  # fmt: skip
                index = upload(like, teacher.device)
                products = _partial_products(
                    teacher, table, rows, index, high, batch, channels_last=channels_last, precision=precision
                )
                negative_dot_hf[index] = products.sum(dim=0).view(len(like), batch, batch)
    return BandProducts(
        energy=energy.view(2, count, batch),
        norm_squared=norms.view(2, count, batch),
        teacher_energy=teacher_energy.view(2, batch),
        teacher_norm_squared=teacher_norms.view(2, batch),
        teacher_dot_lf=dot_lf.view(layers, batch),
        teacher_dot_hf=dot_hf.view(layers, batch, batch),
        negative_dot_lf=pair_lf.view(layers, batch),
        negative_dot_hf=negative_dot_hf,
    )


def gradients(
    maps: Sequence[Tensor],
    teacher: Tensor,
    coefficients: GradientCoefficients,
    upstream: Tensor,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: Representation,
    shared_negatives: bool,
    needed: Sequence[bool],
    precision: str,
) -> list[Tensor | None]:
    """Gradients of the students."""
    check(teacher, precision)
    batch, channels, height, width = teacher.shape
    count = len(maps)
    wanted = [i for i in range(len(negatives)) if needed[i]]
    made = {i: torch.empty_like(maps[i]) for i in wanted}
    if not wanted:
        return [None] * len(negatives)
    channels_last = is_channels_last(teacher)
    tables = low_tables(height, width, power_of_two(height), power_of_two(width), bands, precision, teacher.device)
    config = GradientConfig.choose(
        power_of_two(width), tables.rows_h * tables.rows_w, batch, teacher.element_size(), precision
    )
    table, gradient_table = MapTable.of([*maps, teacher]), MapTable.of(list(made.values()))
    meta = {
        "DTYPE": DTYPES[teacher.dtype], "ALIGNED": table.aligned and gradient_table.aligned,
        "UNIFORM": table.uniform and gradient_table.uniform, **COMPILER,
    }  # fmt: skip
    plan = [n for k, i in enumerate(wanted) for n in (i, negatives[i], count + 1 + k)]
    fields, strides = alike(coefficients)
    upstream = upstream.float()
    with device_guard(teacher.device):
        numbers = upload([*table.rows, *gradient_table.rows, *plan], teacher.device)
        rows, plan_rows = parts(numbers, [len(table.rows) + len(gradient_table.rows), len(plan)])
        # Where gradients are rounded to bf16 the targets may be, and their traffic halves.
        scratch = torch.bfloat16 if teacher.dtype == torch.bfloat16 else torch.float32
        high, *_ = _high_pass(
            teacher, table, rows, count, bands=bands, precision=precision, channels_last=channels_last, dtype=scratch
        )
        together = math.gcd(triton.cdiv(channels, config.channels), 4)
        grid = (len(wanted) * triton.cdiv(channels, config.channels), triton.cdiv(batch, config.samples))
        packed_kernels.framer_loss_gradients_bwd_kernel[grid](
            rows, plan_rows, *table.strides, *gradient_table.strides, high, tables.basis_h, tables.basis_w, tables.mask,
            *fields, upstream, *strides, *upstream.stride(), count, len(wanted), batch, channels, fields[4].shape[2],
            *_packed_strides(channels_last, channels, height, width),
            LH=tables.rows_h, LW=tables.rows_w, H=height, W=width, HP=power_of_two(height), WP=power_of_two(width),
            HS=config.rows, BB=config.samples, BC=config.channels, TOGETHER=together,
            SHARED=shared_negatives, PRECISION=precision, num_warps=config.num_warps, num_stages=1, **meta,
        )  # fmt: skip
        if shared_negatives:
            for j in sorted({negatives[i] for i in wanted}):
                like = [i for i in wanted if negatives[i] == j]
                weights = coefficients.negative_hf * upstream[..., None]
                _add_targets([made[i] for i in like], weights, like, maps[j], bands=bands, precision=precision)
    return [made.get(i) for i in range(len(negatives))]


def cross_products(
    maps: Sequence[Tensor],
    teacher: Tensor,
    targets: Tensor,
    target_teacher: Tensor,
    *,
    bands: BandSplit,
    representation: Representation,
    precision: str,
) -> Tensor:
    """High-band products of students with maps of another rank."""
    check(targets, precision)
    channels_last = is_channels_last(maps[0])
    table, target_table = MapTable.of(maps), MapTable.of([targets])
    with device_guard(targets.device):
        numbers = upload([*table.rows, *target_table.rows, *range(len(maps))], targets.device)
        rows, target_rows, chosen = parts(numbers, [len(table.rows), len(target_table.rows), len(maps)])
        high, *_ = _high_pass(
            targets, target_table, target_rows, 0, bands=bands, precision=precision, channels_last=channels_last,
            dtype=torch.float32,
        )  # fmt: skip
        products = _partial_products(
            maps[0], table, rows, chosen, high, len(targets), channels_last=channels_last, precision=precision
        )
        return sums_of_parts(products).view(len(maps), len(teacher), len(targets))


def add_cross_gradients(
    gradients: Sequence[Tensor],
    weights: Tensor,
    maps: Sequence[Tensor],
    teacher: Tensor,
    targets: Tensor,
    target_teacher: Tensor,
    *,
    bands: BandSplit,
    representation: Representation,
    precision: str,
) -> None:
    """Adds what the products of `cross_products` contribute to the students' gradients."""
    check(targets, precision)
    if gradients:
        with device_guard(targets.device):
            _add_targets(gradients, weights, range(len(gradients)), targets, bands=bands, precision=precision)


def _add_targets(
    gradients: Sequence[Tensor],
    weights: Tensor,
    chosen: Sequence[int],
    targets: Tensor,
    *,
    bands: BandSplit,
    precision: str,
) -> None:
    """Adds ``sum_g weights[chosen[k], b, g] targets_HF[g]`` to gradient k."""
    batch, channels, height, width = gradients[0].shape
    channels_last = is_channels_last(gradients[0])
    weights = weights.float()
    target_table, table = MapTable.of([targets]), MapTable.of(gradients)
    plan = [n for k, i in enumerate(chosen) for n in (i, k)]
    numbers = upload([*target_table.rows, *table.rows, *plan], targets.device)
    target_rows, rows, plan_rows = parts(numbers, [len(target_table.rows), len(table.rows), len(plan)])
    high, *_ = _high_pass(
        targets, target_table, target_rows, 0, bands=bands, precision=precision, channels_last=channels_last,
        dtype=torch.float32,
    )  # fmt: skip
    config = TargetConfig.choose(channels_last=channels_last)
    blocks = triton.cdiv(channels, config.channels) * triton.cdiv(height * width, config.positions)
    packed_kernels.framer_loss_targets_bwd_kernel[(blocks, batch, len(gradients))](
        rows, plan_rows, *table.strides, high, weights, channels, len(targets),
        *_packed_strides(channels_last, channels, height, width), *weights.stride(),
        W=width, P=height * width, BP=config.positions, BC=config.channels, num_warps=config.num_warps,
        **_meta(table, gradients[0].dtype),
    )  # fmt: skip
