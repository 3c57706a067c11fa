"""Walking maps chunk by chunk, each chunk of each map transformed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from framer_kernels.backends.portable.layout import ROOT_2, SpectrumLayout
from framer_kernels.backends.portable.workspace import Vectors, Workspace
from framer_kernels.bands import BandSplit, sample_quantile
from framer_kernels.types import Representation


class Chunks:
    """Walks maps of one size chunk by chunk with the workspaces that takes.

    Args:
        teacher: The targets of all layers, ``[B, C, H, W]``.
        bands: Division into bands.
        representation: What the cosine compares.
    """

    def __init__(self, teacher: Tensor, bands: BandSplit, representation: Representation) -> None:
        self.layout = SpectrumLayout.of(teacher, bands, representation)
        self._teacher = teacher
        self._workspaces: dict[tuple[int, int], Workspace] = {}
        self._thresholds = self._quantiles() if bands.kind == "quantile" else None

    def workspace(self, batch: int, channels: slice) -> Workspace:
        """The workspace for chunks of this size."""
        key = (batch, channels.stop - channels.start)
        if key not in self._workspaces:
            self._workspaces[key] = Workspace(self.layout, *key)
        return self._workspaces[key]

    def __iter__(self) -> Iterator[tuple[slice, Workspace]]:
        batch = self._teacher.shape[0]
        for channels in self.layout.chunks(batch):
            yield channels, self.workspace(batch, channels)

    def analyse_teacher(self, channels: slice, *, magnitude: bool) -> tuple[Vectors, Tensor | None]:
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


class ChunkMaps:
    """Vectors of one chunk of the maps, each made when it is first asked for and released after its last use."""

    def __init__(
        self,
        workspace: Workspace,
        maps: Sequence[Tensor],
        uses: Counter[int],
        channels: slice,
        low: Tensor | None,
        *,
        energies: Tensor | None = None,
    ) -> None:
        self._workspace, self._maps, self._channels, self._low = workspace, maps, channels, low
        self._left = Counter(uses)
        self._alive: dict[int, Vectors] = {}
        self._energies = energies

    def vectors(self, index: int) -> Vectors:
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
