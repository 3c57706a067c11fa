"""The definitions of ``docs/method.md`` in plain torch, to be read next to it.

Symbols are those of the document: ``x_i`` a student, ``t`` the teacher, ``x_j`` the random-layer negative,
``F`` the 2-D DFT, ``u_b`` the vector of band b. Shapes: N students, B samples on this rank, G samples in the
process group, D numbers in ``u_b``. float64 features are computed in float64, all others in float32. Inputs
are taken to be valid; the public functions check them and say what the arguments mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from framer_kernels.bands import BandSplit
from framer_kernels.distributed import GlobalBatch
from framer_kernels.precision import ENERGY_EPS, NORM_FLOOR, compute_dtype
from framer_kernels.types import BandAssignment, BandPair, FawMode, FramerLoss, Representation

Contrast: TypeAlias = Literal["intra", "inter"]

CONTRASTS: Final[Mapping[BandAssignment, tuple[Contrast, Contrast]]] = {
    "intra_low": ("intra", "inter"),
    "intra_high": ("inter", "intra"),
    "intra_both": ("intra", "intra"),
    "inter_both": ("inter", "inter"),
}
"""The losses of the low and of the high band."""

# Symbols: spectra, masks, vectors


def spectrum(x: Tensor) -> Tensor:
    """``F(x)``: ``[B, C, H, W]`` complex, unnormalised, each channel on its own."""
    transformed: Tensor = torch.fft.fft2(x.to(compute_dtype(x.dtype)))
    return transformed


def band_masks(bands: BandSplit, teacher_spectrum: Tensor) -> BandPair:
    """``M_LF`` and ``M_HF = 1 - M_LF``, bool, broadcastable to the spectrum."""
    low = bands.low_mask(teacher_spectrum)
    return BandPair(low, ~low)


def band_vectors(x_spectrum: Tensor, masks: BandPair, representation: Representation) -> BandPair:
    """``u_b(x)``, ``[B, D]`` real: D = 2CHW for ``complex`` and CHW for ``magnitude``.

    Args:
        x_spectrum: ``F(x)``, ``[B, C, H, W]``.
        masks: ``M_b``, broadcastable to it.
        representation: What the cosine compares.
    """
    if representation == "complex":
        return BandPair(*(torch.view_as_real(x_spectrum * mask).flatten(1) for mask in masks))
    magnitude = x_spectrum.abs()
    return BandPair(*((magnitude * mask).flatten(1) for mask in masks))


def unit_vectors(vectors: BandPair) -> BandPair:
    """``sg(u_b / max(|u_b|, 1e-12))``, ``[B, D]``: the side of a cosine that gets no gradient."""
    return BandPair(*(torch.nn.functional.normalize(u.detach(), dim=1, eps=NORM_FLOOR) for u in vectors))


# Similarity


def paired_cosine(query: Tensor, targets: Tensor) -> Tensor:
    """``cos_b`` of each query ``u_b(x)`` with the unit vector of the same row: ``[B, D], [B, D] -> [B]``."""
    return _over_query_norm((query * targets).sum(dim=1), torch.linalg.vector_norm(query, dim=1))


def pairwise_cosine(query: Tensor, targets: Tensor) -> Tensor:
    """``cos_b`` of each query ``u_b(x)`` with every unit vector: ``[B, D], [G, D] -> [B, G]``."""
    return _over_query_norm(query @ targets.T, torch.linalg.vector_norm(query, dim=1, keepdim=True))


def _over_query_norm(products: Tensor, norm: Tensor) -> Tensor:
    cosine = products / norm.clamp_min(NORM_FLOOR)
    # Below the floor a query has no direction to learn; the quotient alone would give it a gradient of 1e12.
    return torch.where(norm > NORM_FLOOR, cosine, cosine.detach())


# Losses


def intra_cl(positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """IntraCL from ``s+_b`` and ``s-_b``: ``[B], [B] -> [B]``.

    Args:
        positive: ``s+_b``.
        negative: ``s-_b``.
        temperature: Above 0.
    """
    return _contrast(positive / temperature, negative / temperature)


def inter_cl(positive: Tensor, negative: Tensor, in_batch: Tensor, temperature: float) -> Tensor:
    """InterCL from ``s+_b``, ``s-_b`` and the in-batch cosines: ``[B], [B], [B, K] -> [B]``.

    Args:
        positive: ``s+_b``.
        negative: ``s-_b``.
        in_batch: Cosines with what other images offer; ``-inf`` where an entry is no negative.
        temperature: Above 0.
    """
    negatives = torch.cat([negative[:, None], in_batch], dim=1) / temperature
    return _contrast(positive / temperature, negatives.logsumexp(dim=1))


def _contrast(positive: Tensor, negative: Tensor) -> Tensor:
    """``-log(e^p / (e^p + e^n)) = log(1 + e^(n - p))``: no overflow, and exact for a loss near zero."""
    return -torch.nn.functional.logsigmoid(positive - negative)


def in_batch_cosine(query: Tensor, others: Sequence[Tensor], first: int) -> Tensor:
    """``cos_b(x_i[b], .[b'])`` for all ``b'`` of the group, and ``-inf`` where ``b' = b``.

    Args:
        query: ``[B, D]``, ``u_b`` of this rank's samples of a student.
        others: K tensors ``[G, D]``, unit vectors of all ranks.
        first: Row of each of them that belongs to the first query.

    Returns:
        ``[B, K G]``.
    """

    def cosine(targets: Tensor) -> Tensor:
        cosines = pairwise_cosine(query, targets)
        b, b_prime = (torch.arange(n, device=query.device) for n in cosines.shape)
        return cosines.masked_fill(b[:, None] + first == b_prime, float("-inf"))

    return torch.cat([cosine(targets) for targets in others], dim=1)


def in_batch_targets(
    contrast: Contrast, targets: Tensor, units: Mapping[int, Tensor], shared_negatives: bool, batch: GlobalBatch
) -> dict[int, list[Tensor]]:
    """What the other images offer one band for negatives: by random-layer negative, unit vectors ``[G, D]``.

    Args:
        contrast: The band's loss; IntraCL takes none.
        targets: ``[B, D]``, unit vectors of the teacher.
        units: ``[B, D]``, those of every layer that is a negative.
        shared_negatives: Whether these join the teacher's.
        batch: All ranks' samples. With a group the call is collective for InterCL.
    """
    if contrast == "intra":
        return {j: [] for j in units}
    everyone = batch.gather(targets)
    # Sorted: every rank gathers the layers in the same order.
    return {j: [everyone, batch.gather(units[j])] if shared_negatives else [everyone] for j in sorted(units)}


def band_loss(
    contrast: Contrast,
    query: Tensor,
    positive: Tensor,
    negative: Tensor,
    others: Sequence[Tensor],
    first: int,
    temperature: float,
) -> Tensor:
    """One band's loss, ``[B]``.

    Args:
        contrast: Which one.
        query: ``[B, D]``, ``u_b(x_i)``.
        positive: ``[B]``, ``s+_b``.
        negative: ``[B]``, ``s-_b``.
        others: ``[G, D]`` each, the `in_batch_targets` of the random-layer negative.
        first: As in `in_batch_cosine`.
        temperature: Above 0.
    """
    if contrast == "intra":
        return intra_cl(positive, negative, temperature)
    return inter_cl(positive, negative, in_batch_cosine(query, others, first), temperature)


# FAW and FAM, both without gradient


@torch.no_grad()
def energies(x_spectrum: Tensor, masks: BandPair) -> BandPair:
    """``E_b(x)``, ``[B]`` for each band."""
    magnitude = x_spectrum.abs()

    def energy(mask: Tensor) -> Tensor:
        bins = mask.sum(dim=(-2, -1), dtype=magnitude.dtype)
        return ((magnitude * mask).sum(dim=(-2, -1)) / (bins + ENERGY_EPS)).mean(dim=1)

    return BandPair(energy(masks.lf), energy(masks.hf))


@torch.no_grad()
def faw_weight(teacher_energy: Tensor, student_energy: Tensor, faw: FawMode | None) -> Tensor:
    """``w_b = 1 / (1 + Delta_b)``, and 1 for None: ``[B], [B] -> [B]``.

    Args:
        teacher_energy: ``E_b(t)``.
        student_energy: ``E_b(x_i)``.
        faw: What ``Delta_b`` is measured against; None for weight 1.
    """
    if faw is None:
        return torch.ones_like(student_energy)
    delta = (teacher_energy - student_energy).abs()
    if faw == "relative_student":
        delta = delta / (student_energy + ENERGY_EPS)
    elif faw == "relative_teacher":
        delta = delta / (teacher_energy + ENERGY_EPS)
    return 1 / (1 + delta)


def fam_factor(positive: Tensor) -> Tensor:
    """``a_b = max(s+_b, 0)``: ``[B] -> [B]``."""
    return positive.detach().clamp_min(0)


# Total


def framer_loss(
    students: Sequence[Tensor],
    teacher: Tensor,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: Representation,
    temperature: float,
    shared_negatives: bool,
    faw: FawMode | None,
    fam: bool,
    assignment: BandAssignment,
    batch: GlobalBatch,
) -> FramerLoss:
    """``L_i`` of every layer and its parts. Every map is transformed once.

    Args:
        students: N maps ``[B, C, H, W]``.
        teacher: Like them.
        negatives: For each student the index ``j(i)`` of its negative.
        bands: Division into bands.
        representation: What the cosine compares.
        temperature: Above 0.
        shared_negatives: Whether the other images' random-layer negatives repel too.
        faw: What FAW measures energy differences against; None for weight 1.
        fam: Whether FAM applies.
        assignment: Which band has which loss.
        batch: All ranks' samples. With a group the call is collective.
    """
    teacher_spectrum = spectrum(teacher.detach())
    masks = band_masks(bands, teacher_spectrum)
    targets = unit_vectors(band_vectors(teacher_spectrum, masks, representation))
    teacher_energy = energies(teacher_spectrum, masks)

    queries: list[BandPair] = []
    energy: list[BandPair] = []
    for x in students:
        x_spectrum = spectrum(x)
        queries.append(band_vectors(x_spectrum, masks, representation))
        energy.append(energies(x_spectrum, masks))
    units = [unit_vectors(query) for query in queries]

    contrasts = CONTRASTS[assignment]
    others = [
        in_batch_targets(contrasts[b], targets[b], {j: units[j][b] for j in negatives}, shared_negatives, batch)
        for b in (0, 1)
    ]

    layers: list[FramerLoss] = []
    for i, j in enumerate(negatives):
        query = queries[i]
        positive = BandPair(*map(paired_cosine, query, targets))
        negative = BandPair(*map(paired_cosine, query, units[j]))
        low, high = (
            band_loss(contrasts[b], query[b], positive[b], negative[b], others[b][j], batch.first, temperature)
            for b in (0, 1)
        )
        w_lf = faw_weight(teacher_energy.lf, energy[i].lf, faw)
        w_hf = faw_weight(teacher_energy.hf, energy[i].hf, faw)
        s_lf, s_hf = fam_factor(positive.lf), fam_factor(positive.hf)
        a_lf, a_hf = (s_lf, s_hf) if fam else (1.0, 1.0)

        loss = (w_lf * a_lf * low + w_hf * a_hf * high).mean()
        layers.append(FramerLoss(loss, low.detach(), high.detach(), w_lf, w_hf, s_lf, s_hf, energy[i].lf, energy[i].hf))
    return FramerLoss(*(torch.stack(field) for field in zip(*layers, strict=True)))


# Parts of it, on maps


def band_energy(x: Tensor, teacher: Tensor | None, *, bands: BandSplit) -> BandPair:
    """``E_b(x)``, ``[B]`` for each band.

    Args:
        x: ``[B, C, H, W]``.
        teacher: Like ``x``, from which quantile bands are taken; None takes them from ``x``.
        bands: Division into bands.
    """
    x_spectrum = spectrum(x.detach())
    return energies(x_spectrum, _masks(bands, x_spectrum, teacher))


def band_similarity(
    x: Tensor, y: Tensor, teacher: Tensor | None, *, bands: BandSplit, representation: Representation
) -> BandPair:
    """``cos_b(x, sg(y))``, ``[B]`` for each band.

    Args:
        x: ``[B, C, H, W]``.
        y: Like ``x``; gets no gradient.
        teacher: As in `band_energy`.
        bands: Division into bands.
        representation: What the cosine compares.
    """
    x_spectrum = spectrum(x)
    masks = _masks(bands, x_spectrum, teacher)
    query = band_vectors(x_spectrum, masks, representation)
    targets = unit_vectors(band_vectors(spectrum(y.detach()), masks, representation))
    return BandPair(*map(paired_cosine, query, targets))


def _masks(bands: BandSplit, x_spectrum: Tensor, teacher: Tensor | None) -> BandPair:
    # Radial bands depend on the size alone: no teacher need be transformed for them.
    if teacher is None or bands.kind == "radial":
        return band_masks(bands, x_spectrum)
    return band_masks(bands, spectrum(teacher.detach()))


def intra_contrastive_loss(
    student: Tensor,
    teacher: Tensor,
    negative: Tensor,
    *,
    bands: BandSplit,
    representation: Representation,
    temperature: float,
) -> Tensor:
    """IntraCL, ``[B]``.

    Args:
        student: ``[B, C, H, W]``.
        teacher: Like ``student``; gets no gradient.
        negative: Like ``student``; gets no gradient.
        bands: Division into bands.
        representation: What the cosine compares.
        temperature: Above 0.
    """
    query, targets, units = _low_and_high(student, teacher, negative, bands, representation)
    return intra_cl(paired_cosine(query.lf, targets.lf), paired_cosine(query.lf, units.lf), temperature)


def inter_contrastive_loss(
    student: Tensor,
    teacher: Tensor,
    negative: Tensor,
    *,
    bands: BandSplit,
    representation: Representation,
    temperature: float,
    shared_negatives: bool,
    batch: GlobalBatch,
) -> Tensor:
    """InterCL, ``[B]``.

    Args:
        student: ``[B, C, H, W]``.
        teacher: Like ``student``; gets no gradient.
        negative: Like ``student``; gets no gradient.
        bands: Division into bands.
        representation: What the cosine compares.
        temperature: Above 0.
        shared_negatives: Whether the other images' negatives repel too.
        batch: All ranks' samples. With a group the call is collective.
    """
    query, targets, units = _low_and_high(student, teacher, negative, bands, representation)
    (others,) = in_batch_targets("inter", targets.hf, {0: units.hf}, shared_negatives, batch).values()
    in_batch = in_batch_cosine(query.hf, others, batch.first)
    positive, own_negative = paired_cosine(query.hf, targets.hf), paired_cosine(query.hf, units.hf)
    return inter_cl(positive, own_negative, in_batch, temperature)


def _low_and_high(
    student: Tensor, teacher: Tensor, negative: Tensor, bands: BandSplit, representation: Representation
) -> tuple[BandPair, BandPair, BandPair]:
    teacher_spectrum = spectrum(teacher.detach())
    masks = band_masks(bands, teacher_spectrum)
    query = band_vectors(spectrum(student), masks, representation)
    targets = unit_vectors(band_vectors(teacher_spectrum, masks, representation))
    units = unit_vectors(band_vectors(spectrum(negative.detach()), masks, representation))
    return query, targets, units
