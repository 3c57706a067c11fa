"""The passes over a rank's maps: measuring them, and writing their gradients.

Arguments, results and errors are those of `framer_kernels.backends.ProductsBackend`; matrix products are exact
whatever ``precision`` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from framer_kernels.backends.portable.chunks import ChunkMaps, Chunks
from framer_kernels.backends.portable.workspace import Vectors, Workspace
from framer_kernels.bands import BandSplit
from framer_kernels.products import BandProducts, GradientCoefficients
from framer_kernels.types import Representation


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
    """Measures the maps of one rank."""
    chunks = Chunks(teacher, bands, representation)
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
        alive = ChunkMaps(workspace, maps, uses, channels, low, energies=out.energy)
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
    upstream: Tensor,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: Representation,
    shared_negatives: bool,
    needed: Sequence[bool],
    precision: str = "ieee",
) -> list[Tensor | None]:
    """Gradients of the students."""
    chunks = Chunks(teacher, bands, representation)
    coefficients = GradientCoefficients(*(field.to(chunks.layout.dtype) for field in coefficients.times(upstream)))
    wanted = [i for i in _order(negatives) if needed[i]]
    uses = Counter([*wanted, *(negatives[i] for i in wanted)])
    out = [torch.empty_like(x) if need else None for x, need in zip(maps, needed, strict=False)]
    for channels, workspace in chunks:
        target, low = chunks.analyse_teacher(channels, magnitude=False)
        workspace.divide(target, low)
        alive = ChunkMaps(workspace, maps, uses, channels, low)
        for i in wanted:
            x, negative = alive.vectors(i), alive.vectors(negatives[i])
            c = GradientCoefficients(*(field[i] for field in coefficients))
            high = workspace.scratch
            if c.teacher_hf.shape[1]:
                _mix(c.teacher_hf, target.high, out=high)
            else:
                high.zero_()
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
    workspace: Workspace,
    high: Tensor,
    low_part: Tensor | None,
    low: Tensor | None,
    x: Vectors,
    part: Tensor,
    *,
    accumulate: bool,
) -> None:
    """Turns the gradient of a chunk's vectors into that of the map; spends ``high`` and the spectrum of ``x``.

    Args:
        workspace: The chunk's.
        high: Gradient of the vectors, right in the high band alone, ``[rows, B, c]``.
        low_part: Gradient in the low band, laid out as ``Vectors.low``; None for zero.
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
        x.spectrum.div_(x.high.clamp_min_(torch.finfo(high.dtype).tiny))
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
    """High-band products of students with maps of another rank."""
    chunks, theirs = (Chunks(own, bands, representation) for own in (teacher, target_teacher))
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
    """Adds what the products of `cross_products` contribute to the students' gradients."""
    chunks, theirs = (Chunks(own, bands, representation) for own in (teacher, target_teacher))
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


def _targets(theirs: Chunks, targets: Tensor, channels: slice) -> tuple[Vectors, Workspace]:
    low = theirs.low_bins(channels)
    workspace = theirs.workspace(len(targets), channels)
    vectors = workspace.vectors()
    workspace.analyse(targets[:, channels], vectors, magnitude=False)
    workspace.divide(vectors, low)
    return vectors, workspace
