"""The loss as a function of the measured products, and its derivative with respect to each of them.

The equations are those of ``docs/method.md``; the derivatives are written out, because a backend needs them as numbers.
For a cosine ``s = <x, y> / (|x| |y|)`` with ``y`` held, ``ds/dx = y / (|x| |y|) - s x / |x|^2``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from framer_kernels.precision import ENERGY_EPS, NORM_FLOOR
from framer_kernels.products import BandProducts, GradientCoefficients
from framer_kernels.types import FawMode, FramerLoss

Terms: TypeAlias = Literal["both", "intra", "inter"]
"""Which of the two losses a sample's loss is made of."""


class TargetNorms(NamedTuple):
    """Squared norms ``|u_HF|^2`` of what the students are compared with, all ranks' samples in rank order."""

    teacher: Tensor
    """``[G]``."""
    negatives: Tensor
    """Each student's negative, ``[N, G]``."""


class Objective(NamedTuple):
    """What the measured products amount to."""

    losses: Tensor
    """``[N, B]``, not yet the mean over samples."""
    diagnostics: Tensor
    """The fields of `FramerLoss` after the loss, ``[8, N, B]``."""
    coefficients: Tensor
    """Those of the gradient as `GradientCoefficients.of` takes them, ``[N, B, 4 + G + (1 or G)]``; of IntraCL alone
    ``[N, B, 5]``, for the high band of teachers has no part in it."""


def loss_and_coefficients(
    products: BandProducts,
    *,
    negatives: Sequence[int],
    temperature: float,
    faw: FawMode | None,
    fam: bool,
    shared_negatives: bool,
    rounding: float,
    terms: Terms = "both",
    targets: TargetNorms | None = None,
    first: int = 0,
    share: float = 1.0,
) -> Objective:
    """The loss of every layer and sample, its parts, and the coefficients of its gradient.

    Args:
        products: What was measured. In a process group ``teacher_dot_hf``, and with shared negatives
            ``negative_dot_hf``, hold all ranks' samples, ``[N, B, G]``.
        negatives: For every layer the index of its negative among the maps.
        temperature: Above 0.
        faw: How band weights are computed; None for weight 1.
        fam: Whether the similarity gates the loss.
        shared_negatives: Whether other images' negatives repel too.
        rounding: As in `has_direction`.
        terms: Which of the two losses are summed.
        targets: Norms of all ranks' targets; None where ``products`` hold all.
        first: Index in all ranks' samples of this rank's first.
        share: What a sample's loss counts for in what is differentiated: factor of the coefficients.
    """
    layers, size = products.teacher_dot_lf.shape
    chosen = list(negatives)
    norms = products.norm_squared.sqrt()
    live_lf, live_hf = has_direction(products.norm_squared[:, :layers], rounding).unbind()
    x_lf, x_hf = norms[:, :layers].clamp_min(NORM_FLOOR).unbind()
    t_lf = products.teacher_norm_squared[0].sqrt().clamp_min(NORM_FLOOR)
    n_lf = norms[0, chosen].clamp_min(NORM_FLOOR)
    if targets is None:
        targets = TargetNorms(products.teacher_norm_squared[1], products.norm_squared[1, chosen])
    t_hf = targets.teacher.sqrt().clamp_min(NORM_FLOOR)
    n_hf = targets.negatives.sqrt().clamp_min(NORM_FLOOR)
    samples = torch.arange(size, device=t_hf.device)
    own = samples + first

    # Low band
    positive_lf = live_lf * products.teacher_dot_lf / (x_lf * t_lf)
    negative_lf = live_lf * products.negative_dot_lf / (x_lf * n_lf)
    difference = (negative_lf - positive_lf) / temperature
    intra = -logsigmoid(-difference)
    repulsion = difference.sigmoid()

    # High band
    teacher_hf = live_hf[..., None] * products.teacher_dot_hf / (x_hf[..., None] * t_hf)
    positive_hf = teacher_hf[:, samples, own]
    n_hf = n_hf[:, None, :] if shared_negatives else n_hf[:, own, None]
    negative_hf = live_hf[..., None] * products.negative_dot_hf / (x_hf[..., None] * n_hf)
    groups = t_hf.shape[0]
    no_negative = torch.zeros(size, groups, dtype=torch.bool, device=t_hf.device)
    no_negative[samples, own] = True
    exponents = torch.cat([teacher_hf.masked_fill(no_negative, float("-inf")), negative_hf], dim=2)
    exponents = (exponents - positive_hf[..., None]) / temperature
    inter = -logsigmoid(-exponents.logsumexp(dim=2))
    probability = (exponents - inter[..., None]).exp()

    # FAW and FAM
    energy_lf, energy_hf = products.energy[:, :layers].unbind()
    weight_lf = _faw_weight(products.teacher_energy[0], energy_lf, faw)
    weight_hf = _faw_weight(products.teacher_energy[1], energy_hf, faw)
    align_lf, align_hf = positive_lf.clamp_min(0), positive_hf.clamp_min(0)
    gate_lf = weight_lf * align_lf if fam else weight_lf
    gate_hf = weight_hf * align_hf if fam else weight_hf
    # A term that is left out is not there, instead of 0 times what may be NaN.
    summed = {"intra": gate_lf * intra, "inter": gate_hf * inter}
    loss = summed["intra"] + summed["inter"] if terms == "both" else summed[terms]
    live_lf, live_hf = live_lf & (terms != "inter"), live_hf & (terms != "intra")

    # Derivatives with respect to the cosines, then the vectors
    slope = gate_lf * repulsion / temperature
    zero = torch.zeros((), dtype=slope.dtype, device=slope.device)
    slopes = (gate_hf / temperature)[..., None] * probability
    to_teacher, to_negative = slopes[..., :groups], slopes[..., groups:]
    to_teacher[:, samples, own] = -slopes.sum(dim=2)
    self_hf = -((to_teacher * teacher_hf).sum(dim=2) + (to_negative * negative_hf).sum(dim=2)) / x_hf.square()
    coefficients = GradientCoefficients(
        teacher_lf=torch.where(live_lf, -slope / (x_lf * t_lf), zero),
        negative_lf=torch.where(live_lf, slope / (x_lf * n_lf), zero),
        self_lf=torch.where(live_lf, slope * (positive_lf - negative_lf) / x_lf.square(), zero),
        self_hf=torch.where(live_hf, self_hf, zero),
        teacher_hf=torch.where(live_hf[..., None], to_teacher / (x_hf[..., None] * t_hf), zero),
        negative_hf=torch.where(live_hf[..., None], to_negative / (x_hf[..., None] * n_hf), zero),
    )
    if terms == "intra":
        coefficients = coefficients._replace(
            teacher_hf=coefficients.teacher_hf[..., :0], negative_hf=coefficients.negative_hf[..., :1]
        )
    parts = FramerLoss(loss, intra, inter, weight_lf, weight_hf, align_lf, align_hf, energy_lf, energy_hf)
    return Objective(parts.loss, torch.stack(parts[1:]), share * coefficients.packed())


def has_direction(norm_squared: Tensor, rounding: float) -> Tensor:
    """Which band vectors are more than nothing, or than the rounding error of the other band.

    A constant map has no high band, but what the arithmetic leaves of it has a norm: its cosines would be noise, with
    gradients of one over that norm. Such a vector counts as zero.

    Args:
        norm_squared: ``|u_b|^2``, LF then HF, ``[2, ...]``.
        rounding: That of the arithmetic they were measured in, see `framer_kernels.precision.rounding`.
    """
    return (norm_squared > NORM_FLOOR**2) & (norm_squared > rounding**2 * norm_squared.sum(dim=0))


def _faw_weight(teacher_energy: Tensor, student_energy: Tensor, faw: FawMode | None) -> Tensor:
    if faw is None:
        return torch.ones_like(student_energy)
    delta = (teacher_energy - student_energy).abs()
    if faw == "relative_student":
        delta = delta / (student_energy + ENERGY_EPS)
    elif faw == "relative_teacher":
        delta = delta / (teacher_energy + ENERGY_EPS)
    return 1 / (1 + delta)
