"""Names of the choices that the loss takes, and the tuples that it returns."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

BandKind: TypeAlias = Literal["radial", "quantile"]
"""How the spectrum is divided; see `BandSplit`."""

Representation: TypeAlias = Literal["complex", "magnitude"]
"""What the cosine compares: spectra with their phase, or their magnitudes alone."""

FawMode: TypeAlias = Literal["relative_student", "relative_teacher", "absolute"]
"""What the energy difference between student and teacher is measured against."""

BandAssignment: TypeAlias = Literal["intra_low", "intra_high", "intra_both", "inter_both"]
"""Which band has which loss: IntraCL on the low, the high or both bands and InterCL on the other one if any, or InterCL
on both. FRAMER is ``intra_low``."""

Backend: TypeAlias = Literal["auto", "triton", "portable", "reference"]
"""Which implementation computes; ``auto`` takes the best one for the inputs."""

Precision: TypeAlias = Literal["bf16x3", "tf32", "ieee"]
"""How the Triton backend multiplies matrices: float32 in three bfloat16 products, in TensorFloat-32, or exactly."""

GroupMode: TypeAlias = Literal["gather", "ring"]
"""How the samples of other ranks come: all at once, or rank by rank in bounded memory."""


class BandPair(NamedTuple):
    """One tensor for the low and one for the high band."""

    lf: Tensor
    hf: Tensor


class FramerLoss(NamedTuple):
    """The FRAMER loss of every layer, and what it was made of.

    N is the number of students, B the number of samples on this rank. All tensors have the dtype of the
    computation: float64 for float64 features, float32 for all others.

    Attributes:
        loss: ``[N]``, each layer's mean over this rank's samples of
            ``weight_lf * a_lf * intra + weight_hf * a_hf * inter``. Differentiable with respect to the
            students; every other field is detached.
        intra: ``[N, B]``, the low band's loss before weighting: IntraCL, or with the assignments ``intra_high`` and
            ``inter_both`` InterCL.
        inter: ``[N, B]``, the high band's loss before weighting: InterCL, or with the assignments ``intra_high`` and
            ``intra_both`` IntraCL.
        weight_lf: ``[N, B]``, the FAW weight in use, in (0, 1]; 1 where ``faw=None``.
        weight_hf: ``[N, B]``, as ``weight_lf`` for the high band.
        align_lf: ``[N, B]``, ``max(s+_lf, 0)``, the similarity to the teacher, in [0, 1]: FAM's factor
            ``a_lf``. With ``fam=False`` the loss takes ``a_lf = 1`` and this field is the same nonetheless.
        align_hf: ``[N, B]``, as ``align_lf`` for the high band.
        energy_lf: ``[N, B]``, the student's band energy ``E_lf(x_i)``.
        energy_hf: ``[N, B]``, as ``energy_lf`` for the high band.
    """

    loss: Tensor
    intra: Tensor
    inter: Tensor
    weight_lf: Tensor
    weight_hf: Tensor
    align_lf: Tensor
    align_hf: Tensor
    energy_lf: Tensor
    energy_hf: Tensor
