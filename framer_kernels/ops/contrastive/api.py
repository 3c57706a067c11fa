"""Public functions `intra_contrastive_loss` and `inter_contrastive_loss`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from framer_kernels import reference, validation
from framer_kernels.bands import DEFAULT_BANDS, BandSplit
from framer_kernels.distributed import CommonSettings, GlobalBatch, group_name
from framer_kernels.ops.contrastive import autograd
from framer_kernels.precision import DEFAULT_PRECISION, autocast_disabled
from framer_kernels.types import Backend, GroupMode, Precision, Representation

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def intra_contrastive_loss(
    student: Tensor,
    teacher: Tensor,
    negative: Tensor,
    *,
    bands: BandSplit = DEFAULT_BANDS,
    representation: Representation = "complex",
    temperature: float = 1.0,
    backend: Backend = "auto",
    precision: Precision = DEFAULT_PRECISION,
) -> Tensor:
    """IntraCL of FRAMER: in the low band, the teacher attracts and another layer of the same image repels.

    ``-log( e^{s+/T} / (e^{s+/T} + e^{s-/T}) )`` with ``s+ = cos_LF(student, teacher)``,
    ``s- = cos_LF(student, negative)`` and ``T`` the temperature; ``cos_LF`` is that of `band_similarity`.

    Args:
        student: ``[B, C, H, W]``, floating, any strides. The gradient flows here alone.
        teacher: As ``student``, the last layer's map; gets no gradient.
        negative: As ``student``, another layer's map; gets no gradient.
        bands: The division of the spectrum; ``quantile`` takes it from ``teacher``.
        representation: ``complex`` or ``magnitude``.
        temperature: Above 0.
        backend: ``auto`` (Triton on CUDA and ROCm, else portable), ``triton``, ``portable`` or ``reference``.
        precision: How Triton multiplies matrices, see ``docs/kernels.md``; the other backends are exact.

    Returns:
        ``[B]``, one loss a sample, float64 for float64 features and float32 for others.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, dtype or device does not match, a number is out of range, or a name is not among
            the allowed ones.
    """
    _check(student, teacher, negative, bands, representation, backend, precision)
    temperature = validation.check_temperature(temperature)
    if backend != "reference":
        losses: Tensor = autograd.contrastive_loss(
            [student, negative.detach()],
            teacher.detach(),
            [1],
            bands.kind,
            float(bands.value),
            representation,
            temperature,
            False,
            "",
            False,
            "intra",
            backend,
            precision,
            "",
            "gather",
            False,
            False,
        )[0]
        return losses[0]
    with autocast_disabled(student.device):
        return reference.intra_contrastive_loss(
            student, teacher, negative, bands=bands, representation=representation, temperature=temperature
        )


def inter_contrastive_loss(
    student: Tensor,
    teacher: Tensor,
    negative: Tensor,
    *,
    bands: BandSplit = DEFAULT_BANDS,
    representation: Representation = "complex",
    temperature: float = 1.0,
    shared_negatives: bool = False,
    group: ProcessGroup | None = None,
    group_mode: GroupMode = "gather",
    backend: Backend = "auto",
    precision: Precision = DEFAULT_PRECISION,
) -> Tensor:
    """InterCL of FRAMER: in the high band, the teacher attracts, another layer and all other images repel.

    ``-log( e^{s+/T} / (e^{s+/T} + e^{s-/T} + S) )`` with ``s+ = cos_HF(student, teacher)``,
    ``s- = cos_HF(student, negative)``, ``T`` the temperature, and for sample b
    ``S = sum_{b' != b} e^{cos_HF(student[b], teacher[b'])/T}``. ``shared_negatives`` adds
    ``sum_{b' != b} e^{cos_HF(student[b], negative[b'])/T}``. ``b'`` ranges over the samples of all ranks of
    ``group``.

    Args:
        student: ``[B, C, H, W]``, floating, any strides. The gradient flows here alone.
        teacher: As ``student``, the last layer's map; gets no gradient.
        negative: As ``student``, another layer's map; gets no gradient.
        bands: The division of the spectrum; ``quantile`` takes each sample's from its own ``teacher``.
        representation: ``complex`` or ``magnitude``.
        temperature: Above 0.
        shared_negatives: Whether the other images' ``negative`` maps repel too.
        group: Process group whose samples are in-batch negatives; None takes this process's alone. With a
            group the call is collective, as in `framer_loss`, and so is its backward pass.
        group_mode: ``gather`` receives all ranks' maps at once; ``ring`` rank by rank, in memory that does not grow
            with their number. The reference backend gathers.
        backend: ``auto`` (Triton on CUDA and ROCm, else portable), ``triton``, ``portable`` or ``reference``.
        precision: How Triton multiplies matrices, see ``docs/kernels.md``; the other backends are exact.

    Returns:
        ``[B]``, one loss a sample of this rank, float64 for float64 features and float32 for others.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, dtype or device does not match, a number is out of range, a name is not among the
            allowed ones, or the ranks of ``group`` differ in what they compute (raised on all of them).
    """
    _check(student, teacher, negative, bands, representation, backend, precision)
    temperature = validation.check_temperature(temperature)
    validation.check_flag("shared_negatives", shared_negatives)
    validation.check_group_mode(group_mode)
    name = group_name(group)
    differentiated = torch.is_grad_enabled() and student.requires_grad
    if backend != "reference":
        losses: Tensor = autograd.contrastive_loss(
            [student, negative.detach()],
            teacher.detach(),
            [1],
            bands.kind,
            float(bands.value),
            representation,
            temperature,
            shared_negatives,
            "",
            False,
            "inter",
            backend,
            precision,
            name,
            group_mode,
            differentiated,
            False,
        )[0]
        return losses[0]
    common = CommonSettings(
        operation="inter_contrastive_loss",
        negatives=(1,),
        bands=BandSplit(bands.kind, float(bands.value)),
        representation=representation,
        temperature=temperature,
        shared_negatives=shared_negatives,
        faw=None,
        fam=False,
        reference_backend=True,
        precision=precision,
        group_mode=group_mode,
    )
    batch = GlobalBatch.of(teacher, group, common, differentiated=differentiated)
    with autocast_disabled(student.device):
        return reference.inter_contrastive_loss(
            student,
            teacher,
            negative,
            bands=bands,
            representation=representation,
            temperature=temperature,
            shared_negatives=shared_negatives,
            batch=batch,
        )


def _check(
    student: Tensor,
    teacher: Tensor,
    negative: Tensor,
    bands: BandSplit,
    representation: Representation,
    backend: Backend,
    precision: Precision,
) -> None:
    validation.check_map("teacher", teacher)
    validation.check_like("student", student, "the teacher", teacher)
    validation.check_like("negative", negative, "the teacher", teacher)
    validation.check_bands(bands)
    validation.check_representation(representation)
    validation.check_backend(backend)
    validation.check_precision(precision)
