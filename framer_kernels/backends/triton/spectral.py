"""The backend's functions where bins are formed: the ``magnitude`` representation, and ``quantile`` bands.

Arguments, results and errors are those of `framer_kernels.backends.ProductsBackend`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from framer_kernels.backends.triton import spectral_kernels
from framer_kernels.backends.triton.addresses import MapTable, alike, device_guard, parts, upload
from framer_kernels.backends.triton.configs import COMPILER, TransformConfig
from framer_kernels.backends.triton.limits import DTYPES, check
from framer_kernels.backends.triton.sums import sums_of_parts
from framer_kernels.backends.triton.tables import SpectralTables, spectral_tables
from framer_kernels.backends.triton.walks import WALKS, Walk
from framer_kernels.bands import BandSplit, sample_quantile
from framer_kernels.precision import ENERGY_EPS
from framer_kernels.products import BandProducts, GradientCoefficients
from framer_kernels.types import Representation


@dataclass(frozen=True)
class Bands:
    """The low band of a teacher's samples as kernels take it.

    Attributes:
        low: Bits of the components that are low: a table, or for quantile bands a tile for each sample and chunk.
        scales: Quantile bands: 1 / bins of each channel, ``[B, 2, C]`` with C padded; else empty.
    """

    low: Tensor
    scales: Tensor


class _Launcher:
    """Launches over maps of one kind.

    Args:
        like: One of the maps.
        bands: Division into bands.
        representation: What the cosine compares.
        precision: Arithmetic of matrix products.

    Raises:
        ValueError: These kernels do not take them.
    """

    def __init__(self, like: Tensor, bands: BandSplit, representation: Representation, precision: str) -> None:
        check(like, precision)
        _, self.channels, self.height, self.width = like.shape
        self.device, self.dtype, self.bands = like.device, like.dtype, bands
        self.quantile, self.magnitude = bands.kind == "quantile", representation == "magnitude"
        self.precision = precision
        self.config = TransformConfig.choose(self.height, self.width, precision)
        self.tables = self._tables(self.config, precision)
        self.chunks = triton.cdiv(self.channels, self.config.channels)
        # Positions of the quadrants, those that padding adds left out.
        self.tile = (self.height + 1) // 2 * ((self.width + 1) // 2) * self.config.channels
        self.energy_scales = tuple(scale / self.channels for scale in self.tables.energy_scales)

    def _tables(self, config: TransformConfig, precision: str) -> SpectralTables:
        height, width = self.height, self.width
        return spectral_tables(height, width, config.height, config.width, self.bands, precision, self.device)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory on the maps' device."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def meta(self, *tables: MapTable) -> dict[str, Any]:
        """What every kernel is specialised for, and its launch."""
        return {
            "H": self.height, "W": self.width, "HP": self.config.height, "WP": self.config.width,
            "BC": self.config.channels, "PRECISION": self.precision, "MAGNITUDE": self.magnitude,
            "QUANTILE": self.quantile, "num_warps": self.config.num_warps, "num_stages": 1,
            **self._maps_meta(*tables),
        }  # fmt: skip

    def _maps_meta(self, *tables: MapTable) -> dict[str, Any]:
        return {
            "DTYPE": DTYPES[self.dtype],
            "ALIGNED": all(table.aligned for table in tables),
            "UNIFORM": all(table.uniform for table in tables),
            **COMPILER,
        }

    def vectors(
        self,
        batch: int,
        table: MapTable,
        rows: Tensor,
        index: int,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Vectors of map ``index`` of the table, not divided into bands."""
        vectors = self._room(batch, dtype)
        self._launch(batch, table, rows, index, vectors=vectors)
        return vectors

    def teacher(
        self,
        batch: int,
        table: MapTable,
        rows: Tensor,
        index: int,
        *,
        dtype: torch.dtype = torch.float32,
        sums: Tensor | None = None,
        first: int = 0,
    ) -> tuple[Tensor, Bands]:
        """Vectors and bands of map ``index`` of the table; with ``sums`` also its energies and squared norms."""
        vectors = self._room(batch, dtype)
        return vectors, self._divide(batch, table, rows, index, vectors=vectors, sums=sums, first=first)

    def bands_of(self, batch: int, table: MapTable, rows: Tensor, index: int) -> Bands:
        """Bands of map ``index`` of the table alone."""
        if not self.quantile:
            return Bands(self.tables.low, self.empty(0))
        return self._divide(batch, table, rows, index)

    def _room(self, batch: int, dtype: torch.dtype) -> Tensor:
        size = 2 * self.tile + 2 * (self.config.channels if self.magnitude else self.tile)
        return self.empty(batch * self.chunks * size, dtype=dtype)

    def _divide(
        self,
        batch: int,
        table: MapTable,
        rows: Tensor,
        index: int,
        *,
        vectors: Tensor | None = None,
        sums: Tensor | None = None,
        first: int = 0,
    ) -> Bands:
        if not self.quantile:
            bands = Bands(self.tables.low, self.empty(0))
            self._launch(batch, table, rows, index, vectors=vectors, sums=sums, first=first, bands=bands)
            return bands
        # A bin near the quantile is put in its band by the most exact arithmetic, whatever products are made with.
        config = TransformConfig.choose(self.height, self.width, "ieee")
        tables = self._tables(config, "ieee")
        values = self.empty(batch, self.channels * self.height * self.width)
        spectral_kernels.framer_loss_magnitudes_fwd_kernel[(triton.cdiv(self.channels, config.channels), batch)](
            rows, index, *table.strides, tables.basis_h, tables.basis_w, values, self.channels, H=self.height,
            W=self.width, HP=config.height, WP=config.width, BC=config.channels, PRECISION="ieee",
            num_warps=config.num_warps, num_stages=1, **self._maps_meta(table),
        )  # fmt: skip
        thresholds = sample_quantile(values, self.bands.value)
        bands = Bands(
            self.empty(batch * self.chunks * self.tile, dtype=torch.int8),
            self.empty(batch, 2, self.chunks * self.config.channels),
        )
        self._launch(
            batch, table, rows, index, vectors=vectors, sums=sums, first=first, bands=bands,
            magnitudes=(values, thresholds),
        )  # fmt: skip
        return bands

    def _launch(
        self,
        batch: int,
        table: MapTable,
        rows: Tensor,
        index: int,
        *,
        vectors: Tensor | None = None,
        sums: Tensor | None = None,
        first: int = 0,
        bands: Bands | None = None,
        magnitudes: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        none = self.tables.basis_h
        values, thresholds = magnitudes or (none, none)
        spectral_kernels.framer_loss_vectors_fwd_kernel[(self.chunks, batch)](
            rows, index, *table.strides, self.tables.basis_h, self.tables.basis_w, values, thresholds,
            none if bands is None else bands.low, none if bands is None else bands.scales,
            none if vectors is None else vectors, none if sums is None else sums,
            batch, self.channels, self.chunks, 0 if sums is None else sums.shape[1], first, *self.energy_scales,
            EPS=ENERGY_EPS, DIVIDE=magnitudes is not None, VECTORS=vectors is not None, STATISTICS=sums is not None,
            **self.meta(table),
        )  # fmt: skip

    def products(
        self,
        batch: int,
        table: MapTable,
        rows: Tensor,
        layers: Tensor,
        bands: Bands,
        vectors: Tensor,
        target_bands: Bands,
        targets: int,
    ) -> Tensor:
        """High-band products of the layers listed with the targets, ``[n, B, G]``."""
        count = len(layers)
        sums = self.empty(self.chunks, count * batch * targets)
        spectral_kernels.framer_loss_spectral_products_fwd_kernel[(self.chunks * count * batch,)](
            rows, layers, *table.strides, self.tables.basis_h, self.tables.basis_w, bands.low, target_bands.low,
            vectors, sums, count, batch, self.channels, self.chunks, targets, **self.meta(table),
        )  # fmt: skip
        return sums_of_parts(sums).view(count, batch, targets)

    def add(
        self,
        gradients: Sequence[Tensor],
        weights: Tensor,
        maps: Sequence[Tensor],
        chosen: Sequence[int],
        bands: Bands,
        vectors: Tensor,
        target_bands: Bands,
    ) -> None:
        """Adds ``sum_g weights[chosen[k], b, g] u_HF(y[g])``, taken back to maps, to gradient k of map k."""
        weights = weights.float().contiguous()
        table, gradient_table = MapTable.of(maps), MapTable.of(gradients)
        plan = [n for k, i in enumerate(chosen) for n in (k, k, len(maps) + k, i)]
        numbers = upload([*table.rows, *gradient_table.rows, *plan], self.device)
        rows, plan_rows = parts(numbers, [len(table.rows) + len(gradient_table.rows), len(plan)])
        self.gradients(
            (table, gradient_table), rows, plan_rows, bands, vectors, target_bands, [weights] * 7,
            (*weights.stride()[:2], 0, 0), len(gradients), len(gradients[0]), weights.shape[2], add=True, shared=False,
        )  # fmt: skip

    def gradients(
        self,
        tables: tuple[MapTable, MapTable],
        rows: Tensor,
        plan: Tensor,
        bands: Bands,
        vectors: Tensor,
        target_bands: Bands,
        fields: Sequence[Tensor],
        strides: Sequence[int],
        layers: int,
        batch: int,
        targets: int,
        *,
        add: bool,
        shared: bool,
    ) -> None:
        """Writes or adds to the gradients of the plan."""
        spectral_kernels.framer_loss_spectral_gradients_bwd_kernel[(self.chunks * layers * batch,)](
            rows, plan, *tables[0].strides, *tables[1].strides, self.tables.basis_h, self.tables.basis_w, bands.low,
            target_bands.low, vectors, *fields, *strides, layers, batch, self.channels, self.chunks, targets, ADD=add,
            SHARED=shared, **self.meta(*tables),
        )  # fmt: skip


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
    launcher = _Launcher(teacher, bands, representation, precision)
    batch, count, layers = len(teacher), len(maps), len(negatives)
    walk = Walk.over(negatives, count, max(1, WALKS // (batch * launcher.chunks)))
    table = MapTable.of([*maps, teacher])
    pairs = layers * batch
    sizes = [2 * count * batch, 2 * count * batch, pairs, pairs, pairs, 2 * batch, 2 * batch, pairs * batch]
    with device_guard(teacher.device):
        numbers = upload([*table.rows, *(n for step in walk.steps for n in step)], teacher.device)
        rows, steps = parts(numbers, [len(table.rows), 3 * len(walk.steps)])
        sums = launcher.empty(launcher.chunks, sum(sizes))
        vectors, divided = launcher.teacher(batch, table, rows, count, sums=sums, first=sum(sizes[:5]))
        grid = (launcher.chunks * walk.programs * batch,)
        spectral_kernels.framer_loss_spectral_statistics_fwd_kernel[grid](
            rows, steps, *table.strides, launcher.tables.basis_h, launcher.tables.basis_w, divided.low, divided.scales,
            vectors, sums, batch, launcher.channels, launcher.chunks, count, layers, len(walk.steps), walk.programs,
            walk.length, sums.shape[1], sum(sizes[:7]), *launcher.energy_scales, **launcher.meta(table),
        )  # fmt: skip
        energy, norms, dot_lf, pair_lf, pair_hf, teacher_energy, teacher_norms, dot_hf = parts(
            sums_of_parts(sums), sizes
        )
        negative_dot_hf = pair_hf.view(layers, batch, 1)
        if shared_negatives:
            negative_dot_hf = launcher.empty(layers, batch, batch)
            for j in sorted(set(negatives)):
                like = upload([i for i in range(layers) if negatives[i] == j], teacher.device)
                vectors = launcher.vectors(batch, table, rows, j)
                negative_dot_hf[like] = launcher.products(batch, table, rows, like, divided, vectors, divided, batch)
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
    launcher = _Launcher(teacher, bands, representation, precision)
    batch, count = len(teacher), len(maps)
    wanted = [i for i in range(len(negatives)) if needed[i]]
    made = {i: torch.empty_like(maps[i]) for i in wanted}
    if not wanted:
        return [None] * len(negatives)
    table, gradient_table = MapTable.of([*maps, teacher]), MapTable.of(list(made.values()))
    plan = [n for k, i in enumerate(wanted) for n in (i, negatives[i], count + 1 + k, i)]
    fields, strides = alike(coefficients)
    upstream = upstream.float()
    with device_guard(teacher.device):
        numbers = upload([*table.rows, *gradient_table.rows, *plan], teacher.device)
        rows, plan_rows = parts(numbers, [len(table.rows) + len(gradient_table.rows), len(plan)])
        # Where gradients are rounded to bf16 the targets may be, and their traffic halves.
        scratch = torch.bfloat16 if teacher.dtype == torch.bfloat16 else torch.float32
        vectors, divided = launcher.teacher(batch, table, rows, count, dtype=scratch)
        launcher.gradients(
            (table, gradient_table), rows, plan_rows, divided, vectors, divided, [*fields, upstream],
            (*strides, *upstream.stride()), len(wanted), batch, fields[4].shape[2], add=False, shared=shared_negatives,
        )  # fmt: skip
        if shared_negatives:
            for j in sorted({negatives[i] for i in wanted}):
                like = [i for i in wanted if negatives[i] == j]
                vectors = launcher.vectors(batch, table, rows, j)
                weights = coefficients.negative_hf * upstream[..., None]
                launcher.add(
                    [made[i] for i in like], weights, [maps[i] for i in like], like, divided, vectors, divided
                )  # fmt: skip
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
    launcher = _Launcher(targets, bands, representation, precision)
    table = MapTable.of(maps)
    with device_guard(targets.device):
        numbers = upload([*table.rows, *range(len(maps))], targets.device)
        rows, chosen = parts(numbers, [len(table.rows), len(maps)])
        divided, vectors, theirs = _ranks(launcher, teacher, targets, target_teacher)
        return launcher.products(len(teacher), table, rows, chosen, divided, vectors, theirs, len(targets))


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
    launcher = _Launcher(targets, bands, representation, precision)
    if gradients:
        with device_guard(targets.device):
            divided, vectors, theirs = _ranks(launcher, teacher, targets, target_teacher)
            launcher.add(gradients, weights, maps, range(len(gradients)), divided, vectors, theirs)


def _ranks(
    launcher: _Launcher, teacher: Tensor, targets: Tensor, target_teacher: Tensor
) -> tuple[Bands, Tensor, Bands]:
    """Bands of the students, vectors of another rank's targets, and their bands."""
    tables = [MapTable.of([x]) for x in (teacher, targets, target_teacher)]
    numbers = upload([n for table in tables for n in table.rows], targets.device)
    rows = parts(numbers, [len(table.rows) for table in tables])
    divided = launcher.bands_of(len(teacher), tables[0], rows[0], 0)
    vectors = launcher.vectors(len(targets), tables[1], rows[1], 0)
    return divided, vectors, launcher.bands_of(len(targets), tables[2], rows[2], 0)
