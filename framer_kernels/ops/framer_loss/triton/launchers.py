"""The backend's functions: they choose configurations, make tables and launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from framer_kernels.bands import BandSplit
from framer_kernels.launch import MapTable, device_guard, span, upload
from framer_kernels.ops.framer_loss.triton import kernels
from framer_kernels.ops.framer_loss.triton.configs import (
    LARGEST_SIDE,
    GradientConfig,
    ProductConfig,
    SumConfig,
    TargetConfig,
    TransformConfig,
)
from framer_kernels.ops.framer_loss.triton.tables import ForwardTables, forward_tables, low_tables
from framer_kernels.products import BandProducts, GradientCoefficients

PRECISIONS = ("bf16x3", "tf32", "ieee")
"""Arithmetic of matrix products: three passes in bf16, one in tf32, or fp32 without matrix units."""

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
LARGEST_GRID = 65535
_PROGRAMS = 1024
"""Programs that a walk over the maps is split for: several for each of 100 to 150 multiprocessors."""


def supports(
    features: Tensor,
    *,
    bands: BandSplit,
    representation: str,
    shared_negatives: bool = False,
    group: bool = False,
) -> str | None:
    """Why these features are not for this backend; None if they are.

    Args:
        features: One of the maps ``[B, C, H, W]``.
        bands: Division into bands.
        representation: What the cosine compares.
        shared_negatives: Whether other samples' negatives repel too: computed, layer by layer.
        group: Whether other ranks' samples are compared with: computed.
    """
    if bands.kind != "radial":
        return f"the Triton kernels know radial bands alone, not {bands.kind}"
    if representation != "complex":
        return f"the Triton kernels know the complex representation alone, not {representation}"
    if features.dtype not in _DTYPES:
        return f"the Triton kernels take float32, bfloat16 and float16 features, not {features.dtype}"
    height, width = features.shape[-2:]
    if max(height, width) > LARGEST_SIDE:
        return f"the Triton kernels take maps of up to {LARGEST_SIDE} x {LARGEST_SIDE}, not {height} x {width}"
    if len(features) > LARGEST_GRID:
        return f"the Triton kernels take up to {LARGEST_GRID} samples, not {len(features)}"
    if span(features) >= 2**31:
        return "the Triton kernels take maps whose samples span fewer than 2**31 numbers"
    return None


def _check(maps: Sequence[Tensor], bands: BandSplit, representation: str, precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}")
    for x in maps:
        reason = supports(x, bands=bands, representation=representation)
        if reason is not None:
            raise RuntimeError(f"framer_kernels: {reason}; the dispatcher ought to have taken another backend")


# What a launch looks at


@dataclass(frozen=True)
class Walk:
    """The order in which maps are transformed: of two neighbours the product is taken.

    Attributes:
        steps: Index of the map at each step.
        length: Steps of one program; it knows nothing of the programs before it.
        map_step: A step at which each map is measured.
        pair_step: For each layer the step that ends the pair of it and its negative.
    """

    steps: tuple[int, ...]
    length: int
    map_step: tuple[int, ...]
    pair_step: tuple[int, ...]

    @classmethod
    def over(cls, negatives: Sequence[int], maps: int, segments: int) -> Walk:
        """Follows each layer to its negative: a cycle of N layers takes N + 1 steps, and one more for each cut."""
        length = max(3, -(-(len(negatives) + 1) // segments))
        steps: list[int] = []
        pair_step = [0] * len(negatives)
        left = set(range(len(negatives)))
        for start in range(len(negatives)):
            i = start
            while i in left:
                if not steps or steps[-1] != i or len(steps) % length == 0:
                    steps.append(i)
                    if len(steps) % length == 0:
                        steps.append(i)
                steps.append(negatives[i])
                pair_step[i] = len(steps) - 1
                left.remove(i)
                i = negatives[i]
        steps += sorted(set(range(maps)) - set(steps))
        return cls(tuple(steps), length, tuple(steps.index(i) for i in range(maps)), tuple(pair_step))


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.shape[1] > 1


def _high_strides(channels_last: bool, channels: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Strides of high-passed maps in scratch: the axis that is contiguous in the maps is so here."""
    area = height * width
    if channels_last:
        return area * channels, 1, width * channels, channels
    return area * channels, area, width, 1


def _forward(teacher: Tensor, bands: BandSplit, precision: str) -> tuple[TransformConfig, ForwardTables]:
    height, width = teacher.shape[-2:]
    config = TransformConfig.choose(height, width)
    tables = forward_tables(height, width, config.height, config.width, bands, precision, teacher.device)
    return config, tables


def _meta(table: MapTable, dtype: torch.dtype) -> dict[str, Any]:
    return {"DTYPE": _DTYPES[dtype], "ALIGNED": table.aligned, "UNIFORM": table.uniform}


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
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """High-passed map times ``H W``, its low coefficients, and its sums for each chunk of channels."""
    batch, channels, height, width = x.shape
    config, tables = _forward(x, bands, precision)
    chunks = triton.cdiv(channels, config.channels)
    high = torch.empty(batch * channels * height * width, dtype=dtype, device=x.device)
    low_size = batch * 4 * tables.low_h * tables.low_w * channels if statistics else 1
    low = torch.empty(low_size, dtype=torch.float32, device=x.device)
    sums = torch.empty(batch, chunks, 4, dtype=torch.float32, device=x.device)
    kernels.framer_loss_teacher_fwd_kernel[(chunks, batch)](
        rows, index, *table.strides, tables.basis_h, tables.basis_w, tables.flags, high, low, sums, batch, channels,
        *_high_strides(channels_last, channels, height, width),
        LH=tables.low_h, LW=tables.low_w, H=height, W=width, HP=config.height, WP=config.width, BC=config.channels,
        PRECISION=precision, STATISTICS=statistics, num_warps=config.num_warps, num_stages=1, **_meta(table, x.dtype),
    )  # fmt: skip
    return high, low, sums


def _products(
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
    """``<u_HF(x_i[b]), u_HF(y[g])>`` of the layers listed, ``[n, B, G]``."""
    batch, channels, height, width = x.shape
    count = len(layers) * batch
    config = ProductConfig.choose(count, targets)
    area = height * width
    outer, inner = (area, channels) if channels_last else (channels, area)
    steps = outer * triton.cdiv(inner, config.inner)
    row_blocks, target_blocks = triton.cdiv(count, config.rows), triton.cdiv(targets, config.targets)
    per_program = triton.cdiv(steps, max(1, min(steps, config.programs // (row_blocks * target_blocks))))
    splits = triton.cdiv(steps, per_program)
    sums = torch.empty(splits, count, targets, dtype=torch.float32, device=x.device)
    kernels.framer_loss_products_fwd_kernel[(row_blocks, splits, target_blocks)](
        rows, layers, *table.strides, high, sums, count, batch, channels, targets, steps, per_program,
        W=width, P=area, BM=config.rows, BG=config.targets, BK=config.inner, CHANNELS_LAST=channels_last,
        PRECISION=precision, num_warps=config.num_warps, num_stages=3, **_meta(table, x.dtype),
    )  # fmt: skip
    out = torch.empty(len(layers), batch, targets, dtype=torch.float32, device=x.device)
    config_sum = SumConfig()
    kernels.framer_loss_split_sums_fwd_kernel[(triton.cdiv(out.numel(), config_sum.outputs),)](
        sums, out, splits, out.numel(), BS=config_sum.parts, BN=config_sum.outputs, num_warps=config_sum.num_warps
    )
    return out


# The backend


def measure(
    maps: Sequence[Tensor],
    teacher: Tensor,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: str,
    shared_negatives: bool,
    precision: str = "bf16x3",
) -> BandProducts:
    """Measures energies, norms and products of maps of one shape, dtype and device.

    Args:
        maps: M maps ``[B, C, H, W]``, any strides; the first N of them are students.
        teacher: ``[B, C, H, W]``.
        negatives: For each of the N students the index of its negative among the maps.
        bands: Division into bands.
        representation: What the cosine compares.
        shared_negatives: Whether products with other samples' negatives are wanted.
        precision: One of `PRECISIONS`.

    Raises:
        RuntimeError: `supports` has something against it.
        ValueError: The precision is unknown.
    """
    _check([*maps, teacher], bands, representation, precision)
    batch, channels, height, width = teacher.shape
    count, students = len(maps), len(negatives)
    channels_last = _channels_last(teacher)
    config, tables = _forward(teacher, bands, precision)
    chunks = triton.cdiv(channels, config.channels)
    walk = Walk.over(negatives, count, max(1, _PROGRAMS // (batch * chunks)))
    table = MapTable.of([*maps, teacher])

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=teacher.device)

    with device_guard(teacher.device):
        rows, steps, layers, map_step, pair_step = upload(
            [table.rows, walk.steps, range(students), walk.map_step, walk.pair_step], teacher.device
        )
        high, low, teacher_sums = _high_pass(
            teacher, table, rows, count, bands=bands, precision=precision, channels_last=channels_last,
            dtype=torch.float32, statistics=True,
        )  # fmt: skip
        sums = empty(batch, len(walk.steps), chunks, 8)
        grid = (chunks, triton.cdiv(len(walk.steps), walk.length), batch)
        kernels.framer_loss_statistics_fwd_kernel[grid](
            rows, steps, *table.strides, tables.basis_h, tables.basis_w, tables.flags, low, sums, batch, channels,
            len(walk.steps), walk.length, LH=tables.low_h, LW=tables.low_w, H=height, W=width, HP=config.height,
            WP=config.width, BC=config.channels, PRECISION=precision, num_warps=config.num_warps, num_stages=1,
            **_meta(table, teacher.dtype),
        )  # fmt: skip
        out = BandProducts(
            energy=empty(2, count, batch),
            norm_squared=empty(2, count, batch),
            teacher_energy=empty(2, batch),
            teacher_norm_squared=empty(2, batch),
            teacher_dot_lf=empty(students, batch),
            teacher_dot_hf=_products(
                teacher, table, rows, layers, high, batch, channels_last=channels_last, precision=precision
            ),
            negative_dot_lf=empty(students, batch),
            negative_dot_hf=empty(students, batch, 1),
        )
        kernels.framer_loss_sums_fwd_kernel[(count + 1, batch)](
            sums, teacher_sums, map_step, pair_step, out.energy, out.norm_squared, out.teacher_energy,
            out.teacher_norm_squared, out.teacher_dot_lf, out.negative_dot_lf, out.negative_dot_hf, count, students,
            batch, len(walk.steps), chunks, *(scale / channels for scale in tables.energy_scale), BLOCK=128,
            num_warps=1,
        )  # fmt: skip
        if shared_negatives:
            out = out._replace(negative_dot_hf=empty(students, batch, batch))
            for j in sorted(set(negatives)):
                high, _, _ = _high_pass(
                    maps[j], table, rows, j, bands=bands, precision=precision, channels_last=channels_last,
                    dtype=torch.float32, statistics=False,
                )  # fmt: skip
                for i in (i for i in range(students) if negatives[i] == j):
                    out.negative_dot_hf[i] = _products(
                        teacher, table, rows, layers[i : i + 1], high, batch, channels_last=channels_last,
                        precision=precision,
                    )[0]  # fmt: skip
    return out


def cross_products(
    maps: Sequence[Tensor],
    teacher: Tensor,
    targets: Tensor,
    target_teacher: Tensor,
    *,
    bands: BandSplit,
    representation: str,
    precision: str = "bf16x3",
) -> Tensor:
    """High-band products of students with maps of another rank, ``[n, B, G]``.

    Args:
        maps: n students ``[B, C, H, W]``.
        teacher: Their teacher: radial bands need none.
        targets: ``[G, C, H, W]``.
        target_teacher: The teacher of ``targets``: radial bands need none.
        bands: Division into bands.
        representation: What the cosine compares.
        precision: One of `PRECISIONS`.

    Raises:
        RuntimeError: `supports` has something against it.
        ValueError: The precision is unknown.
    """
    _check([*maps, targets], bands, representation, precision)
    like = maps[0]
    channels_last = _channels_last(like)
    table, target_table = MapTable.of(maps), MapTable.of([targets])
    with device_guard(like.device):
        rows, target_rows, layers = upload([table.rows, target_table.rows, range(len(maps))], like.device)
        high, _, _ = _high_pass(
            targets, target_table, target_rows, 0, bands=bands, precision=precision, channels_last=channels_last,
            dtype=torch.float32, statistics=False,
        )  # fmt: skip
        return _products(
            like, table, rows, layers, high, len(targets), channels_last=channels_last, precision=precision
        )


def gradients(
    maps: Sequence[Tensor],
    teacher: Tensor,
    coefficients: GradientCoefficients,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: str,
    shared_negatives: bool,
    needed: Sequence[bool],
    precision: str = "bf16x3",
    dtype: torch.dtype | None = None,
) -> list[Tensor | None]:
    """Gradients of the students.

    Args:
        maps: As in `measure`.
        teacher: As in `measure`.
        coefficients: Those of this rank's targets, ``teacher_hf`` ``[N, B, B]``.
        negatives: As in `measure`.
        bands: As in `measure`.
        representation: As in `measure`.
        shared_negatives: As in `measure`.
        needed: For each student whether its gradient is wanted.
        precision: As in `measure`.
        dtype: Of the gradients, where not the students'; float32 for what `add_cross_gradients` is to add to.

    Returns:
        For each student a map of its dtype and layout, or None.

    Raises:
        RuntimeError: `supports` has something against it.
    """
    _check([*maps, teacher], bands, representation, precision)
    batch, channels, height, width = teacher.shape
    count, students = len(maps), len(negatives)
    wanted = [i for i in range(students) if needed[i]]
    # What is added to must not be rounded in between.
    dtype = torch.float32 if shared_negatives else dtype or teacher.dtype
    out: list[Tensor | None] = [
        torch.empty_like(x, dtype=dtype) if needed[i] else None for i, x in enumerate(maps[:students])
    ]
    if not wanted:
        return out
    channels_last = _channels_last(teacher)
    config = GradientConfig.choose(height, width, batch)
    tables = low_tables(height, width, config.height, config.width, bands, precision, teacher.device)
    # One row of addresses for each map, and one for each gradient.
    table, gradient_table = MapTable.of([*maps, teacher]), MapTable.of([x for x in out if x is not None])
    uniform = table.uniform and gradient_table.uniform
    meta = {
        "DTYPE": _DTYPES[teacher.dtype], "ALIGNED": table.aligned and gradient_table.aligned, "UNIFORM": uniform
    }  # fmt: skip
    plan = [n for k, i in enumerate(wanted) for n in (i, negatives[i], count + 1 + k)]
    lf, hf = coefficients.negative_lf, coefficients.negative_hf
    fields = [field.float().contiguous() for field in (coefficients.teacher_lf, lf, coefficients.self_lf)]
    fields += [field.float().contiguous() for field in (coefficients.self_hf, coefficients.teacher_hf, hf)]
    with device_guard(teacher.device):
        rows, plan_rows = upload([[*table.rows, *gradient_table.rows], plan], teacher.device)
        # Where gradients are rounded to bf16 the targets may be, and their traffic halves.
        scratch = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        high, _, _ = _high_pass(
            teacher, table, rows, count, bands=bands, precision=precision, channels_last=channels_last, dtype=scratch,
            statistics=False,
        )  # fmt: skip
        grid = (2 * len(wanted), triton.cdiv(batch, config.samples), triton.cdiv(channels, 2 * config.channels))
        kernels.framer_loss_gradients_bwd_kernel[grid](
            rows, plan_rows, *table.strides, *gradient_table.strides, high, tables.basis_h, tables.basis_w, tables.mask,
            *fields, count, batch, channels, batch,
            *_high_strides(channels_last, channels, height, width),
            LH=tables.rows_h, LW=tables.rows_w, H=height, W=width, HP=config.height, WP=config.width,
            BB=config.samples, BC=config.channels, PRECISION=precision, SHARED=shared_negatives,
            OUT=_DTYPES[dtype], num_warps=config.num_warps, num_stages=1, **meta,
        )  # fmt: skip
        if shared_negatives:
            for j in sorted({negatives[i] for i in wanted}):
                _add_targets(
                    out, maps[j], hf, [i for i in wanted if negatives[i] == j], bands=bands, precision=precision
                )
            out = [None if x is None else x.to(teacher.dtype) for x in out]
    return out


def add_cross_gradients(
    gradients: Sequence[Tensor],
    weights: Tensor,
    maps: Sequence[Tensor],
    teacher: Tensor,
    targets: Tensor,
    target_teacher: Tensor,
    *,
    bands: BandSplit,
    representation: str,
    precision: str = "bf16x3",
) -> None:
    """Adds what the products of `cross_products` contribute to the students' gradients.

    Args:
        gradients: n maps, added to: rounded to their dtype each time.
        weights: Derivatives with respect to the products, ``[n, B, G]``.
        maps: As in `cross_products`; not read.
        teacher: As in `cross_products`.
        targets: As in `cross_products`.
        target_teacher: As in `cross_products`.
        bands: Division into bands.
        representation: What the cosine compares.
        precision: One of `PRECISIONS`.

    Raises:
        RuntimeError: `supports` has something against it.
        ValueError: The precision is unknown.
    """
    _check([*gradients, targets], bands, representation, precision)
    if gradients:
        with device_guard(targets.device):
            _add_targets(gradients, targets, weights, range(len(gradients)), bands=bands, precision=precision)


def _add_targets(
    gradients: Sequence[Tensor | None],
    targets: Tensor,
    weights: Tensor,
    chosen: Sequence[int],
    *,
    bands: BandSplit,
    precision: str,
) -> None:
    """Adds ``sum_g weights[i, b, g] targets_HF[g]`` to the gradients chosen."""
    outputs = [x for x in (gradients[i] for i in chosen) if x is not None]
    like = outputs[0]
    batch, channels, height, width = like.shape
    channels_last = _channels_last(like)
    weights = weights.float()
    target_table, table = MapTable.of([targets]), MapTable.of(outputs)
    plan = [n for k, i in enumerate(chosen) for n in (i, i, k)]
    target_rows, rows, plan_rows = upload([target_table.rows, table.rows, plan], like.device)
    high, _, _ = _high_pass(
        targets, target_table, target_rows, 0, bands=bands, precision=precision, channels_last=channels_last,
        dtype=torch.float32, statistics=False,
    )  # fmt: skip
    config = TargetConfig.choose(channels_last=channels_last)
    blocks = triton.cdiv(channels, config.channels) * triton.cdiv(height * width, config.positions)
    kernels.framer_loss_targets_bwd_kernel[(blocks, batch, len(chosen))](
        rows, plan_rows, *table.strides, high, weights, batch, channels, len(targets),
        *_high_strides(channels_last, channels, height, width), *weights.stride(),
        W=width, P=height * width, BP=config.positions, BC=config.channels, num_warps=config.num_warps,
        **_meta(table, like.dtype),
    )  # fmt: skip
