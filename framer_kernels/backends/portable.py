"""Band products and gradients in plain torch, on any device: chunk by chunk, each map read once a pass.

A chunk of channels of all samples is transformed by two matrix products with the packed real DFT into ``[H, W, n]``,
n = B times the chunk's channels, so that every step after it works on long contiguous rows. The few buffers of a chunk
are used again for every chunk and map and stay in the processor's cache; no spectrum of a whole map exists.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from framer_kernels.bands import BandSplit, sample_quantile
from framer_kernels.fourier import PackedAxis
from framer_kernels.precision import ENERGY_EPS, compute_dtype
from framer_kernels.products import BandProducts, GradientCoefficients
from framer_kernels.types import Representation

CPU_CHUNK_BYTES = 1 << 21
"""A chunk of a map in the dtype of the computation: smaller ones spend their time between operations, larger ones fall
out of the cache."""
DEVICE_CHUNK_BYTES = 1 << 26
"""On devices with memory of their own, launches cost more than cache misses."""

ROOT_2 = math.sqrt(2)


class _Spectrum:
    """How maps of one size and their bands are laid out.

    A half-plane of ``bins`` frequencies stands for the whole spectrum, in five blocks: edge x edge rows and columns,
    edge x interior, interior x edge, interior x interior ``F(k_h, k_w)``, and the same with ``F(-k_h, k_w)``. Scales
    are such that sums over rows of vectors are sums over the whole spectrum.

    Args:
        like: A map ``[B, C, H, W]``: size, device and dtype.
        bands: Division into bands.
        representation: What the cosine compares.
    """

    def __init__(self, like: Tensor, bands: BandSplit, representation: Representation) -> None:
        _, self.channels, self.height, self.width = like.shape
        self.device, self.dtype = like.device, compute_dtype(like.dtype)
        self.bands, self.representation = bands, representation
        # Where both bands treat F(k_h, k_w) and F(-k_h, k_w) alike, the packed coefficients themselves are the vectors.
        self.packed = representation == "complex" and bands.kind == "radial"
        edge, interior = (1.0, ROOT_2) if self.packed else (2**0.25, 2**0.25)
        self.corner_scale = 1.0 if self.packed else 1 / ROOT_2
        self.rows, self.columns = PackedAxis(self.height), PackedAxis(self.width)
        self.basis_h, self.basis_w = (
            axis.basis(edge_scale=edge, interior_scale=interior).to(self.device, self.dtype)
            for axis in (self.rows, self.columns)
        )
        eh, mh, ew, mw = self.rows.edges, self.rows.interior, self.columns.edges, self.columns.interior
        self.row_blocks, self.column_blocks = [eh, mh, mh], [ew, mw, mw]
        self.bin_blocks = [eh * ew, eh * mw, mh * ew, mh * mw, mh * mw]
        self.bins = sum(self.bin_blocks)
        blocks = torch.tensor(self.bin_blocks)
        scales = [1.0, ROOT_2, ROOT_2] + ([1.0] * 2 if self.packed else [ROOT_2] * 2)
        energy_weight = torch.tensor(scales, dtype=torch.float64).repeat_interleave(blocks)
        self.energy_weight = energy_weight.to(self.device, self.dtype)[:, None, None]
        conjugates = torch.tensor([1.0] + [2.0] * 4, dtype=torch.float64).repeat_interleave(blocks)
        self.conjugates = conjugates.to(self.device, self.dtype)[:, None, None]
        self.vector_rows = 2 * self.bins if representation == "complex" and not self.packed else self.bins
        if self.packed:
            self.vector_rows = self.height * self.width
        if bands.kind == "radial":
            self._divide_radially(bands.radial_mask(self.height, self.width, torch.device("cpu")), energy_weight)

    def _divide_radially(self, mask: Tensor, energy_weight: Tensor) -> None:
        k_h, k_w = torch.tensor(self.rows.frequencies), torch.tensor(self.columns.frequencies)
        by_coefficient = mask[k_h[:, None], k_w]
        (edge, inside, _), (ew, mw, _) = by_coefficient.split_with_sizes(self.row_blocks), self.column_blocks
        interior = inside[:, ew : ew + mw].flatten()
        by_bin = torch.cat(
            [edge[:, :ew].flatten(), edge[:, ew : ew + mw].flatten(), inside[:, :ew].flatten(), interior, interior]
        )
        low = by_coefficient.flatten() if self.packed else by_bin.repeat(self.vector_rows // self.bins)
        self.low_rows = low.nonzero().flatten().to(self.device)
        counts = torch.stack([mask.sum(), (~mask).sum()]).double()
        weights = torch.stack([by_bin, ~by_bin]) * energy_weight
        self.band_weights = (weights / (counts[:, None] + ENERGY_EPS)).to(self.device, self.dtype)

    def chunks(self, batch: int) -> Iterator[slice]:
        """Ranges of channels, as equal as can be."""
        limit = CPU_CHUNK_BYTES if self.device.type == "cpu" else DEVICE_CHUNK_BYTES
        channel_bytes = batch * self.height * self.width * torch.finfo(self.dtype).bits // 8
        count = min(self.channels, max(1, -(-self.channels * channel_bytes // limit)))
        bounds = [self.channels * i // count for i in range(count + 1)]
        return (slice(start, stop) for start, stop in pairwise(bounds))


class _Vectors:
    """Buffers for the band vectors of one chunk of one map, ``[rows, B, c]``.

    Attributes:
        high: All rows, zero outside of the band.
        low: For radial bands the low rows alone; for quantile bands all rows, zero outside of the band.
        spectrum: Real and imaginary part of every bin, ``[2, bins, B, c]``.
        magnitude: Of every bin, ``[bins, B, c]``.
    """

    def __init__(self, layout: _Spectrum, batch: int, channels: int) -> None:
        def buffer(*rows: int) -> Tensor:
            return torch.empty(*rows, batch, channels, dtype=layout.dtype, device=layout.device)

        self.spectrum, self.magnitude = buffer(2, layout.bins), buffer(layout.bins)
        if layout.packed:
            self.high = buffer(layout.vector_rows)
        elif layout.representation == "complex":
            self.high = self.spectrum.view(layout.vector_rows, batch, channels)
        else:
            self.high = self.magnitude
        quantile = layout.bands.kind == "quantile"
        self.low = buffer(layout.vector_rows if quantile else len(layout.low_rows))


class _Workspace:
    """Transforms one chunk of a map after another.

    Args:
        layout: Layout of the spectrum.
        batch: B.
        channels: Channels of a chunk.
    """

    def __init__(self, layout: _Spectrum, batch: int, channels: int) -> None:
        self.layout, self.batch, self.count = layout, batch, channels
        height, width, n = layout.height, layout.width, batch * channels

        def buffer(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=layout.dtype, device=layout.device)

        self._signal, self._half, self._packed = (buffer(height * width * n) for _ in range(3))
        self.sums = buffer(2, n)
        self.scratch = buffer(layout.vector_rows, batch, channels)
        self._views: dict[int, list[Tensor]] = {}  # of buffers, which stay where they are, by address
        self._free: list[_Vectors] = []

    def vectors(self) -> _Vectors:
        """Buffers that no one uses."""
        return self._free.pop() if self._free else _Vectors(self.layout, self.batch, self.count)

    def release(self, vectors: _Vectors) -> None:
        """Gives buffers back."""
        self._free.append(vectors)

    def packed_buffer(self) -> Tensor:
        """Room for the coefficients of one chunk, ``[H * W, B, c]``."""
        return self._packed.view(self.layout.height * self.layout.width, self.batch, self.count)

    # Maps to packed coefficients and back

    def forward(self, part: Tensor, out: Tensor) -> Tensor:
        """Packed coefficients of a chunk of a map, into ``out`` ``[H * W, B, c]``.

        Args:
            part: ``[B, c, H, W]``, any strides and dtype.
            out: Written.
        """
        batch, count, height, width = part.shape
        n = batch * count
        layout = self.layout
        if part.stride(1) == 1:
            # Channels last: they stay the innermost axis.
            signal = self._signal.view(height, width, batch, count)
            signal.copy_(part.permute(2, 3, 0, 1))
            half = self._half.view(height, width, n)
            torch.bmm(layout.basis_w.expand(height, width, width), signal.view(height, width, n), out=half)
            torch.mm(layout.basis_h, half.view(height, width * n), out=out.view(height, width * n))
            return out
        half = self._half.view(width, batch, count * height)
        if part.dtype == layout.dtype and part[0].is_contiguous():
            for b in range(batch):
                torch.mm(layout.basis_w, part[b].view(count * height, width).T, out=half[:, b])
        else:
            signal = self._signal.view(batch, count, height, width).copy_(part)
            torch.mm(layout.basis_w, signal.view(n * height, width).T, out=half.view(width, n * height))
        torch.mm(layout.basis_h, half.view(width * n, height).T, out=out.view(height, width * n))
        return out

    def adjoint(self, packed: Tensor, part: Tensor, *, accumulate: bool) -> None:
        """Writes or adds the transpose of `forward` to a chunk of a map.

        Args:
            packed: ``[H * W, B, c]``.
            part: ``[B, c, H, W]``, any strides and dtype; written.
            accumulate: Whether to add.
        """
        batch, count, height, width = part.shape
        n = batch * count
        layout = self.layout
        if part.stride(1) == 1:
            half = self._half.view(height, width, n)
            torch.mm(layout.basis_h.T, packed.view(height, width * n), out=half.view(height, width * n))
            signal = self._signal.view(height, width, n)
            torch.bmm(layout.basis_w.T.expand(height, width, width), half, out=signal)
            signal = signal.view(height, width, batch, count).permute(2, 3, 0, 1)
        else:
            half = self._half.view(width * n, height)
            torch.mm(packed.view(height, width * n).T, layout.basis_h, out=half)
            half = half.view(width, batch, count * height)
            if part.dtype == layout.dtype and part[0].is_contiguous() and not accumulate:
                for b in range(batch):
                    torch.mm(half[:, b].T, layout.basis_w, out=part[b].view(count * height, width))
                return
            signal = self._signal.view(batch, count, height, width)
            torch.mm(half.view(width, n * height).T, layout.basis_w, out=signal.view(n * height, width))
        if accumulate:
            part.add_(signal)
        else:
            part.copy_(signal)

    # Packed coefficients to bins and back

    def _blocks(self, packed: Tensor) -> list[Tensor]:
        """Blocks of packed coefficients: edge, cosine and sine rows by edge, cosine and sine columns."""
        layout = self.layout
        if packed.data_ptr() not in self._views:
            rows = packed.view(layout.height, layout.width, self.batch, self.count).split_with_sizes(layout.row_blocks)
            self._views[packed.data_ptr()] = [
                block for row in rows for block in row.split_with_sizes(layout.column_blocks, dim=1)
            ]
        return self._views[packed.data_ptr()]

    def _bins(self, spectrum: Tensor) -> list[Tensor]:
        """Blocks of real parts, then of imaginary parts, each as ``[rows, columns, B, c]``."""
        layout = self.layout
        if spectrum.data_ptr() not in self._views:
            shapes = [(h, w) for h in layout.row_blocks[:2] for w in layout.column_blocks[:2]]
            shapes.append(shapes[-1])
            self._views[spectrum.data_ptr()] = [
                block.view(*shape, self.batch, self.count)
                for part in spectrum
                for block, shape in zip(part.split_with_sizes(layout.bin_blocks), shapes, strict=True)
            ]
        return self._views[spectrum.data_ptr()]

    def to_bins(self, packed: Tensor, spectrum: Tensor) -> None:
        """Real and imaginary part of every bin, ``[H * W, B, c] -> [2, bins, B, c]``."""
        ee, ec, es, ce, cc, cs, se, sc, ss = self._blocks(packed)
        re_ee, re_em, re_me, re_p, re_n, im_ee, im_em, im_me, im_p, im_n = self._bins(spectrum)
        torch.mul(ee, self.layout.corner_scale, out=re_ee)
        im_ee.zero_()
        for target, source in ((re_em, ec), (im_em, es), (re_me, ce), (im_me, se)):
            target.copy_(source)
        torch.sub(cc, ss, out=re_p)
        torch.add(cs, sc, out=im_p)
        torch.add(cc, ss, out=re_n)
        torch.sub(cs, sc, out=im_n)

    def from_bins(self, spectrum: Tensor, packed: Tensor) -> None:
        """Transpose of `to_bins`."""
        ee, ec, es, ce, cc, cs, se, sc, ss = self._blocks(packed)
        re_ee, re_em, re_me, re_p, re_n, _, im_em, im_me, im_p, im_n = self._bins(spectrum)
        torch.mul(re_ee, self.layout.corner_scale, out=ee)
        for target, source in ((ec, re_em), (es, im_em), (ce, re_me), (se, im_me)):
            target.copy_(source)
        torch.add(re_p, re_n, out=cc)
        torch.sub(re_n, re_p, out=ss)
        torch.add(im_p, im_n, out=cs)
        torch.sub(im_p, im_n, out=sc)

    def analyse(self, part: Tensor, into: _Vectors, *, magnitude: bool) -> None:
        """Fills spectrum and magnitude of a chunk, and ``high`` with the undivided vectors.

        Args:
            part: ``[B, c, H, W]``.
            into: Written.
            magnitude: Whether the magnitude is wanted where the vectors do not need it.
        """
        layout = self.layout
        packed = self.forward(part, into.high if layout.packed else self.packed_buffer())
        if not layout.packed or magnitude:
            self.to_bins(packed, into.spectrum)
        if magnitude or layout.representation == "magnitude":
            real, imaginary = into.spectrum
            torch.mul(real, real, out=into.magnitude).addcmul_(imaginary, imaginary).sqrt_()

    # Bands

    def divide(self, vectors: _Vectors, low: Tensor | None) -> None:
        """Divides undivided vectors into the bands.

        Args:
            vectors: Changed in place.
            low: Low bins of quantile bands, ``[bins, B, c]`` bool; None for radial bands.
        """
        if low is None:
            torch.index_select(vectors.high, 0, self.layout.low_rows, out=vectors.low)
            vectors.high.index_fill_(0, self.layout.low_rows, 0)
        else:
            mask = self.by_row(low)
            torch.mul(vectors.high, mask, out=vectors.low)
            vectors.high.masked_fill_(mask, 0)

    def by_row(self, low: Tensor) -> Tensor:
        """A mask of bins as one of rows of vectors."""
        return torch.cat([low, low]) if self.layout.vector_rows != self.layout.bins else low

    def energies(self, magnitude: Tensor, low: Tensor | None) -> Tensor:
        """Sum over the chunk's channels of each one's mean magnitude in a band, ``[2, B]`` float64."""
        layout = self.layout
        if low is None:
            torch.mm(layout.band_weights, magnitude.view(layout.bins, -1), out=self.sums)
            return self.sums.view(2, self.batch, self.count).sum(dim=2, dtype=torch.float64)
        weighted = magnitude * layout.energy_weight
        means = [
            (weighted * band).sum(dim=0) / ((layout.conjugates * band).sum(dim=0) + ENERGY_EPS) for band in (low, ~low)
        ]
        return torch.stack(means).sum(dim=2, dtype=torch.float64)


class _Chunks:
    """Walks maps of one size chunk by chunk with the workspaces that takes.

    Args:
        teacher: The targets of all layers, ``[B, C, H, W]``.
        bands: Division into bands.
        representation: What the cosine compares.
    """

    def __init__(self, teacher: Tensor, bands: BandSplit, representation: Representation) -> None:
        self.layout = _Spectrum(teacher, bands, representation)
        self._teacher = teacher
        self._workspaces: dict[tuple[int, int], _Workspace] = {}
        self._thresholds = self._quantiles() if bands.kind == "quantile" else None

    def workspace(self, batch: int, channels: slice) -> _Workspace:
        """The workspace for chunks of this size."""
        key = (batch, channels.stop - channels.start)
        if key not in self._workspaces:
            self._workspaces[key] = _Workspace(self.layout, *key)
        return self._workspaces[key]

    def __iter__(self) -> Iterator[tuple[slice, _Workspace]]:
        batch = self._teacher.shape[0]
        for channels in self.layout.chunks(batch):
            yield channels, self.workspace(batch, channels)

    def analyse_teacher(self, channels: slice, *, magnitude: bool) -> tuple[_Vectors, Tensor | None]:
        """The teacher's undivided vectors of a chunk, and the low bins of quantile bands."""
        workspace = self.workspace(self._teacher.shape[0], channels)
        vectors = workspace.vectors()
        workspace.analyse(self._teacher[:, channels], vectors, magnitude=magnitude or self._thresholds is not None)
        if self._thresholds is None:
            return vectors, None
        return vectors, self._unscaled(vectors.magnitude) < self._thresholds[:, None]

    def low_bins(self, channels: slice) -> Tensor | None:
        """Low bins of quantile bands of a chunk, ``[bins, B, c]`` bool; None for radial bands."""
        if self._thresholds is None:
            return None
        vectors, low = self.analyse_teacher(channels, magnitude=False)
        self.workspace(self._teacher.shape[0], channels).release(vectors)
        return low

    def _quantiles(self) -> Tensor:
        """Quantile of each sample's magnitudes over the whole spectrum, ``[B]``."""
        layout, batch = self.layout, self._teacher.shape[0]
        area, corners = layout.height * layout.width, layout.bin_blocks[0]
        values = torch.empty(batch, layout.channels, area, dtype=layout.dtype, device=layout.device)
        for channels, workspace in self:
            vectors = workspace.vectors()
            workspace.analyse(self._teacher[:, channels], vectors, magnitude=True)
            magnitude = self._unscaled(vectors.magnitude).permute(1, 2, 0)
            values[:, channels, : layout.bins] = magnitude
            values[:, channels, layout.bins :] = magnitude[..., corners:]
            workspace.release(vectors)
        return sample_quantile(values.flatten(1), layout.bands.value)

    def _unscaled(self, magnitude: Tensor) -> Tensor:
        # A value that is its own quantile must come out the same in both places.
        corners = self.layout.bin_blocks[0]
        unscaled = magnitude / ROOT_2
        unscaled[:corners] = magnitude[:corners]
        return unscaled


class _Maps:
    """Vectors of one chunk of the maps, each made when it is first asked for and released after its last use."""

    def __init__(
        self,
        workspace: _Workspace,
        maps: Sequence[Tensor],
        uses: Counter[int],
        channels: slice,
        low: Tensor | None,
        *,
        energies: Tensor | None = None,
    ) -> None:
        self._workspace, self._maps, self._channels, self._low = workspace, maps, channels, low
        self._left = Counter(uses)
        self._alive: dict[int, _Vectors] = {}
        self._energies = energies

    def vectors(self, index: int) -> _Vectors:
        """Vectors of map ``index``, valid until it is released as often as it is used."""
        if index not in self._alive:
            vectors = self._alive[index] = self._workspace.vectors()
            self._workspace.analyse(self._maps[index][:, self._channels], vectors, magnitude=self._energies is not None)
            if self._energies is not None:
                self._energies[:, index] += self._workspace.energies(vectors.magnitude, self._low)
            self._workspace.divide(vectors, self._low)
        return self._alive[index]

    def release(self, index: int) -> None:
        """Ends one use of map ``index``."""
        self._left[index] -= 1
        if not self._left[index]:
            self._workspace.release(self._alive.pop(index))


def _gram(x: Tensor, y: Tensor) -> Tensor:
    """Products of all pairs of samples: ``[rows, B, c], [rows, G, c] -> [B, G]`` float64."""
    return torch.bmm(x, y.transpose(1, 2)).sum(dim=0, dtype=torch.float64)


def _paired(x: Tensor, y: Tensor) -> Tensor:
    """Products of samples of the same place: ``[B]`` float64."""
    return _gram(x, y).diagonal()


def _order(negatives: Sequence[int]) -> list[int]:
    """Students in an order in which a student's negative comes next wherever that can be."""
    order: dict[int, None] = {}
    for start in range(len(negatives)):
        i = start
        while i < len(negatives) and i not in order:
            order[i] = None
            i = negatives[i]
    return list(order)


def measure(
    maps: Sequence[Tensor],
    teacher: Tensor,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: Representation,
    shared_negatives: bool,
    precision: str = "ieee",
) -> BandProducts:
    """Measures the maps of one rank.

    Args:
        maps: M feature maps ``[B, C, H, W]``, any strides.
        teacher: Alike.
        negatives: For each of the first N maps, the students, the index of its negative among the maps.
        bands: Division into bands.
        representation: What the cosine compares.
        shared_negatives: Whether products with other images' negatives are wanted.
        precision: Ignored; matrix products are exact here.
    """
    chunks = _Chunks(teacher, bands, representation)
    layers, count, size = len(negatives), len(maps), teacher.shape[0]

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=teacher.device)

    out = BandProducts(
        energy=zeros(2, count, size),
        norm_squared=zeros(2, count, size),
        teacher_energy=zeros(2, size),
        teacher_norm_squared=zeros(2, size),
        teacher_dot_lf=zeros(layers, size),
        teacher_dot_hf=zeros(layers, size, size),
        negative_dot_lf=zeros(layers, size),
        negative_dot_hf=zeros(layers, size, size if shared_negatives else 1),
    )
    uses = Counter([*range(count), *negatives])
    order = [*_order(negatives), *range(layers, count)]
    for channels, workspace in chunks:
        target, low = chunks.analyse_teacher(channels, magnitude=True)
        out.teacher_energy.add_(workspace.energies(target.magnitude, low))
        workspace.divide(target, low)
        out.teacher_norm_squared.add_(torch.stack([_paired(v, v) for v in (target.low, target.high)]))
        alive = _Maps(workspace, maps, uses, channels, low, energies=out.energy)
        for i in order:
            x = alive.vectors(i)
            out.norm_squared[:, i] += torch.stack([_paired(v, v) for v in (x.low, x.high)])
            if i < layers:
                negative = alive.vectors(negatives[i])
                out.teacher_dot_lf[i] += _paired(x.low, target.low)
                out.teacher_dot_hf[i] += _gram(x.high, target.high)
                out.negative_dot_lf[i] += _paired(x.low, negative.low)
                products = _gram(x.high, negative.high)
                out.negative_dot_hf[i] += products if shared_negatives else products.diagonal()[:, None]
                alive.release(negatives[i])
            alive.release(i)
        workspace.release(target)
    out.energy.div_(chunks.layout.channels)
    out.teacher_energy.div_(chunks.layout.channels)
    return BandProducts(*(field.to(chunks.layout.dtype) for field in out))


def gradients(
    maps: Sequence[Tensor],
    teacher: Tensor,
    coefficients: GradientCoefficients,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: Representation,
    shared_negatives: bool,
    needed: Sequence[bool],
    precision: str = "ieee",
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
        precision: Ignored; matrix products are exact here.

    Returns:
        For each student a map of its dtype and layout, or None.
    """
    chunks = _Chunks(teacher, bands, representation)
    coefficients = GradientCoefficients(*(field.to(chunks.layout.dtype) for field in coefficients))
    wanted = [i for i in _order(negatives) if needed[i]]
    uses = Counter([*wanted, *(negatives[i] for i in wanted)])
    out = [torch.empty_like(x) if need else None for x, need in zip(maps, needed, strict=False)]
    for channels, workspace in chunks:
        target, low = chunks.analyse_teacher(channels, magnitude=False)
        workspace.divide(target, low)
        alive = _Maps(workspace, maps, uses, channels, low)
        for i in wanted:
            x, negative = alive.vectors(i), alive.vectors(negatives[i])
            c = GradientCoefficients(*(field[i] for field in coefficients))
            high = _mix(c.teacher_hf, target.high, out=workspace.scratch)
            if shared_negatives:
                high.add_(_mix(c.negative_hf, negative.high))
            else:
                high.addcmul_(negative.high, c.negative_hf)
            high.addcmul_(x.high, c.self_hf[:, None])
            low_part = target.low * c.teacher_lf[:, None]
            low_part.addcmul_(negative.low, c.negative_lf[:, None]).addcmul_(x.low, c.self_lf[:, None])
            gradient = out[i]
            if gradient is not None:
                part = gradient[:, channels]
                _write(workspace, high, low_part, low, x, part, accumulate=False)
            alive.release(negatives[i])
            alive.release(i)
        workspace.release(target)
    return out


def _write(
    workspace: _Workspace,
    high: Tensor,
    low_part: Tensor | None,
    low: Tensor | None,
    x: _Vectors,
    part: Tensor,
    *,
    accumulate: bool,
) -> None:
    """Turns the gradient of a chunk's vectors into that of the map; spends ``high`` and the spectrum of ``x``.

    Args:
        workspace: The chunk's.
        high: Gradient of the vectors, right in the high band alone, ``[rows, B, c]``.
        low_part: Gradient in the low band, laid out as ``_Vectors.low``; None for zero.
        low: Low bins of quantile bands.
        x: The map's vectors.
        part: The chunk of the gradient map.
        accumulate: Whether to add to it.
    """
    layout = workspace.layout
    if low is not None:
        mask = workspace.by_row(low)
        high.masked_fill_(mask, 0)
        if low_part is not None:
            high.addcmul_(low_part, mask.to(high.dtype))
    elif low_part is None:
        high.index_fill_(0, layout.low_rows, 0)
    else:
        high.index_copy_(0, layout.low_rows, low_part)
    if layout.packed:
        workspace.adjoint(high, part, accumulate=accumulate)
        return
    if layout.representation == "magnitude":
        # d|F| / dF = F / |F|, and 0 at 0. The magnitude is put together from both bands, and the bands are restored.
        if low is None:
            x.high.index_copy_(0, layout.low_rows, x.low)
        else:
            x.high.add_(x.low)
        high.div_(x.high.clamp_min_(torch.finfo(high.dtype).tiny))
        if low is None:
            x.high.index_fill_(0, layout.low_rows, 0)
        else:
            x.high.masked_fill_(low, 0)
        spectrum = x.spectrum.mul_(high)
    else:
        spectrum = high.view_as(x.spectrum)
    packed = workspace.packed_buffer()
    workspace.from_bins(spectrum, packed)
    workspace.adjoint(packed, part, accumulate=accumulate)


def _mix(weights: Tensor, vectors: Tensor, out: Tensor | None = None) -> Tensor:
    """``sum_g weights[b, g] vectors[:, g]``: ``[B, G], [rows, G, c] -> [rows, B, c]``."""
    return torch.bmm(weights.expand(vectors.shape[0], *weights.shape), vectors, out=out)


def cross_products(
    maps: Sequence[Tensor],
    teacher: Tensor,
    targets: Tensor,
    target_teacher: Tensor,
    *,
    bands: BandSplit,
    representation: Representation,
    precision: str = "ieee",
) -> Tensor:
    """High-band products of students with maps of another rank, ``[n, B, G]`` float64.

    Args:
        maps: n students ``[B, C, H, W]``.
        teacher: Their teacher, from which quantile bands are taken.
        targets: ``[G, C, H, W]``.
        target_teacher: The teacher of ``targets``, which may be the same.
        bands: Division into bands.
        representation: What the cosine compares.
        precision: Ignored; matrix products are exact here.
    """
    chunks, theirs = (_Chunks(own, bands, representation) for own in (teacher, target_teacher))
    out = torch.zeros(len(maps), len(teacher), len(targets), dtype=torch.float64, device=teacher.device)
    for channels, workspace in chunks:
        target, their_workspace = _targets(theirs, targets, channels)
        low = chunks.low_bins(channels)
        for i, x in enumerate(maps):
            vectors = workspace.vectors()
            workspace.analyse(x[:, channels], vectors, magnitude=False)
            workspace.divide(vectors, low)
            out[i] += _gram(vectors.high, target.high)
            workspace.release(vectors)
        their_workspace.release(target)
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
    representation: Representation,
    precision: str = "ieee",
) -> None:
    """Adds what the products of `cross_products` contribute to the students' gradients.

    Args:
        gradients: n maps, added to.
        weights: Derivatives with respect to the products, ``[n, B, G]``.
        maps: As in `cross_products`.
        teacher: As in `cross_products`.
        targets: As in `cross_products`.
        target_teacher: As in `cross_products`.
        bands: As in `cross_products`.
        representation: As in `cross_products`.
        precision: Ignored; matrix products are exact here.
    """
    chunks, theirs = (_Chunks(own, bands, representation) for own in (teacher, target_teacher))
    weights = weights.to(chunks.layout.dtype)
    for channels, workspace in chunks:
        target, their_workspace = _targets(theirs, targets, channels)
        low = chunks.low_bins(channels)
        for gradient, weight, x in zip(gradients, weights, maps, strict=True):
            vectors = workspace.vectors()
            if representation == "magnitude":
                workspace.analyse(x[:, channels], vectors, magnitude=False)
                workspace.divide(vectors, low)
            high = _mix(weight, target.high, out=workspace.scratch)
            _write(workspace, high, None, low, vectors, gradient[:, channels], accumulate=True)
            workspace.release(vectors)
        their_workspace.release(target)


def _targets(theirs: _Chunks, targets: Tensor, channels: slice) -> tuple[_Vectors, _Workspace]:
    low = theirs.low_bins(channels)
    workspace = theirs.workspace(len(targets), channels)
    vectors = workspace.vectors()
    workspace.analyse(targets[:, channels], vectors, magnitude=False)
    workspace.divide(vectors, low)
    return vectors, workspace
