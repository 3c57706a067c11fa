"""How maps of one size, their spectra and their bands are laid out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from framer_kernels.bands import BandSplit
from framer_kernels.fourier import PackedAxis
from framer_kernels.precision import ENERGY_EPS, compute_dtype
from framer_kernels.types import Representation

CPU_CHUNK_BYTES = 1 << 21
"""A chunk of a map in the dtype of the computation: smaller ones spend their time between operations, larger ones fall
out of the cache."""
DEVICE_CHUNK_BYTES = 1 << 26
"""On devices with memory of their own, launches cost more than cache misses."""

ROOT_2 = math.sqrt(2)


class SpectrumLayout:
    """How maps of one size and their bands are laid out.

    A half-plane of ``bins`` frequencies stands for the whole spectrum, in five blocks: edge x edge rows and columns,
    edge x interior, interior x edge, interior x interior ``F(k_h, k_w)``, and the same with ``F(-k_h, k_w)``. Scales
    are such that sums over rows of vectors are sums over the whole spectrum.

    Args:
        size: C, H and W of a map.
        device: The maps'.
        dtype: Of the computation.
        bands: Division into bands.
        representation: What the cosine compares.
    """

    @classmethod
    def of(cls, like: Tensor, bands: BandSplit, representation: Representation) -> SpectrumLayout:
        """The layout of maps like this one, made once: to make it takes as long as to transform a few small maps."""
        size = (like.shape[1], like.shape[2], like.shape[3])
        return _made_once(size, like.device, compute_dtype(like.dtype), bands, representation)

    def __init__(
        self,
        size: tuple[int, int, int],
        device: torch.device,
        dtype: torch.dtype,
        bands: BandSplit,
        representation: Representation,
    ) -> None:
        self.channels, self.height, self.width = size
        self.device, self.dtype = device, dtype
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


@lru_cache(maxsize=64)
def _made_once(
    size: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    bands: BandSplit,
    representation: Representation,
) -> SpectrumLayout:
    # Whatever torch.set_default_device says.
    with torch.device("cpu"):
        return SpectrumLayout(size, device, dtype, bands, representation)
