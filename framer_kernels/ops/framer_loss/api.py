"""Public function `framer_loss`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from framer_kernels import reference, validation
from framer_kernels.bands import DEFAULT_BANDS, BandSplit
from framer_kernels.distributed import CommonSettings, GlobalBatch, group_name
from framer_kernels.ops.contrastive import autograd
from framer_kernels.precision import DEFAULT_PRECISION, autocast_disabled
from framer_kernels.types import Backend, BandAssignment, FawMode, FramerLoss, GroupMode, Precision, Representation

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def framer_loss(
    students: Sequence[Tensor],
    teacher: Tensor,
    *,
    negatives: Sequence[int],
    bands: BandSplit = DEFAULT_BANDS,
    representation: Representation = "complex",
    temperature: float = 1.0,
    shared_negatives: bool = False,
    faw: FawMode | None = "relative_student",
    fam: bool = True,
    assignment: BandAssignment = "intra_low",
    group: ProcessGroup | None = None,
    group_mode: GroupMode = "gather",
    backend: Backend = "auto",
    precision: Precision = DEFAULT_PRECISION,
) -> FramerLoss:
    """The FRAMER loss of every layer (Choi, Sung, Oh, arXiv 2512.01390).

    For layer i, with ``x_i`` its map, ``t`` the teacher and ``x_j``, ``j = negatives[i]``, its random-layer
    negative:

        L_i = mean over samples of ( w_LF a_LF IntraCL + w_HF a_HF InterCL )

    IntraCL and InterCL are those of `intra_contrastive_loss` and `inter_contrastive_loss`. FAW weighs a band
    by the energies ``E`` of `band_energy`, ``w = 1 / (1 + Delta)``, with ``Delta`` one of

        |E(t) - E(x_i)| / (E(x_i) + 1e-9)    "relative_student"
        |E(t) - E(x_i)| / (E(t) + 1e-9)      "relative_teacher"
        |E(t) - E(x_i)|                      "absolute"

    FAM weighs it by the similarity already reached, ``a = max(cos_b(x_i, t), 0)``. Neither has a gradient:
    it flows through ``x_i`` in the cosines of its own layer's IntraCL and InterCL alone, never to the teacher
    nor to a layer that serves as negative.

    Args:
        students: N >= 2 maps ``[B, C, H, W]``, floating, any strides, all of one shape, dtype and device.
        teacher: ``[B, C, H, W]``, the last layer's map, like the students.
        negatives: N indices into ``students``; ``negatives[i] != i``. The same on every rank of ``group``.
        bands: The division of the spectrum; ``quantile`` takes each sample's from its own ``teacher``.
        representation: What the cosine compares: ``complex`` spectra, or their ``magnitude`` alone.
        temperature: Above 0.
        shared_negatives: Whether the other images' random-layer negatives join InterCL's denominator.
        faw: The measure of FAW, or None for ``w = 1``.
        fam: Whether FAM applies; False for ``a = 1``.
        assignment: Which band has which loss. ``intra_low`` is the above; ``intra_high`` has IntraCL in the high and
            InterCL in the low band; ``intra_both`` and ``inter_both`` have one loss in both. ``w`` and ``a`` remain
            those of the band. All but ``intra_low`` are computed by the reference backend, whose autograd keeps the
            spectra of all layers.
        group: Process group whose samples are in-batch negatives; None takes this process's alone. With a
            group the call is collective, with the same arguments on every rank but for B, which may differ, and
            for which students need a gradient, as long as one does on every rank or on none. The backward pass
            is collective, too: every rank must run it equally often and in the same order. The loss
            remains the mean over this rank's samples: where B differs, a mean over the joined batch weighs every
            rank by its B.
        group_mode: ``gather`` receives all ranks' maps at once; ``ring`` rank by rank, in memory that does not grow
            with their number, and rounds the gradient of features below float32 once a rank. The reference backend
            gathers.
        backend: ``auto`` (Triton on CUDA and ROCm, else portable; ``reference`` for another ``assignment`` than
            ``intra_low``), ``triton``, ``portable`` or ``reference``.
        precision: How Triton multiplies matrices, see ``docs/kernels.md``; the other backends are exact.

    Returns:
        The loss ``[N]``, differentiable with respect to the students, and detached diagnostics ``[N, B]``.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: There are fewer than two students, a shape, dtype or device does not match, a number is
            out of range, a name is not among the allowed ones, the backend does not have the ``assignment``, or the
            ranks of ``group`` differ in what they compute (raised on all of them).
    """
    validation.check_map("teacher", teacher)
    students = validation.check_students(students, teacher)
    negatives = validation.check_negatives(negatives, len(students))
    validation.check_bands(bands)
    validation.check_representation(representation)
    temperature = validation.check_temperature(temperature)
    validation.check_flag("shared_negatives", shared_negatives)
    validation.check_choice("faw", faw, (*get_args(FawMode), None))
    validation.check_flag("fam", fam)
    validation.check_backend(backend)
    validation.check_assignment(assignment, backend)
    validation.check_group_mode(group_mode)
    validation.check_precision(precision)
    name = group_name(group)
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in students)
    if backend != "reference" and assignment == "intra_low":
        losses, diagnostics, _, _ = autograd.contrastive_loss(
            list(students),
            teacher.detach(),
            list(negatives),
            bands.kind,
            float(bands.value),
            representation,
            temperature,
            shared_negatives,
            faw or "",
            fam,
            "both",
            backend,
            precision,
            name,
            group_mode,
            differentiated,
            True,
        )
        return FramerLoss(losses, *diagnostics.detach().unbind())
    common = CommonSettings(
        operation="framer_loss",
        negatives=tuple(negatives),
        bands=BandSplit(bands.kind, float(bands.value)),
        representation=representation,
        temperature=temperature,
        shared_negatives=shared_negatives,
        faw=faw,
        fam=fam,
        reference_backend=True,
        precision=precision,
        group_mode=group_mode,
        assignment=assignment,
    )
    batch = GlobalBatch.of(teacher, group, common, differentiated=differentiated)
    with autocast_disabled(teacher.device):
        return reference.framer_loss(
            students,
            teacher,
            negatives=negatives,
            bands=bands,
            representation=representation,
            temperature=temperature,
            shared_negatives=shared_negatives,
            faw=faw,
            fam=fam,
            assignment=assignment,
            batch=batch,
        )
