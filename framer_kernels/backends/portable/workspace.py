"""One chunk of a map after another: transformed, divided into bands, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from framer_kernels.backends.portable.layout import SpectrumLayout
from framer_kernels.precision import ENERGY_EPS


class Vectors:
    """Buffers for the band vectors of one chunk of one map, ``[rows, B, c]``.

    Attributes:
        high: All rows, zero outside of the band.
        low: For radial bands the low rows alone; for quantile bands all rows, zero outside of the band.
        spectrum: Real and imaginary part of every bin, ``[2, bins, B, c]``.
        magnitude: Of every bin, ``[bins, B, c]``.
    """

    def __init__(self, layout: SpectrumLayout, batch: int, channels: int) -> None:
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


class Workspace:
    """Transforms one chunk of a map after another.

    Args:
        layout: Layout of the spectrum.
        batch: B.
        channels: Channels of a chunk.
    """

    def __init__(self, layout: SpectrumLayout, batch: int, channels: int) -> None:
        self.layout, self.batch, self.count = layout, batch, channels
        height, width, n = layout.height, layout.width, batch * channels

        def buffer(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=layout.dtype, device=layout.device)

        self._signal, self._half, self._packed = (buffer(height * width * n) for _ in range(3))
        self.sums = buffer(2, n)
        self.scratch = buffer(layout.vector_rows, batch, channels)
        self._views: dict[int, list[Tensor]] = {}  # of buffers, which stay where they are, by address
        self._free: list[Vectors] = []

    def vectors(self) -> Vectors:
        """Buffers that no one uses."""
        return self._free.pop() if self._free else Vectors(self.layout, self.batch, self.count)

    def release(self, vectors: Vectors) -> None:
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

    def analyse(self, part: Tensor, into: Vectors, *, magnitude: bool) -> None:
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

    def divide(self, vectors: Vectors, low: Tensor | None) -> None:
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
