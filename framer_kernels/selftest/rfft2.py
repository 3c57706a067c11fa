"""The loss as one would write it first, with ``rfft2`` and autograd: what the backends' times are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from framer_kernels.bands import BandSplit
from framer_kernels.precision import ENERGY_EPS
from framer_kernels.types import Representation


def rfft2_loss(
    students: Sequence[Tensor],
    teacher: Tensor,
    *,
    negatives: Sequence[int],
    bands: BandSplit,
    representation: Representation,
) -> Tensor:
    """`framer_loss` with its default settings, ``[N]``, for radial bands.

    Half a spectrum stands for the whole one: a column that has a conjugate counts twice.
    """
    size, _, height, width = teacher.shape
    columns = width // 2 + 1
    low = bands.radial_mask(height, width, teacher.device)[:, :columns]
    counts = torch.full((columns,), 2.0, device=teacher.device)
    counts[0] = 1
    if width % 2 == 0:
        counts[-1] = 1
    weights = [low * counts, ~low * counts]

    def measured(x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        spectrum = torch.fft.rfft2(x.float())
        magnitude = spectrum.abs()
        parts = magnitude if representation == "magnitude" else torch.view_as_real(spectrum)
        vectors = []
        for weight in weights:
            root = weight.sqrt() if representation == "magnitude" else weight.sqrt()[..., None]
            vectors.append(normalize((parts * root).flatten(1), dim=1))
        held = magnitude.detach()
        return vectors, [((held * w).sum(dim=(-2, -1)) / (w.sum() + ENERGY_EPS)).mean(dim=1) for w in weights]

    targets, teacher_energies = measured(teacher.detach())
    queries, energies = zip(*(measured(x) for x in students), strict=True)
    same = torch.eye(size, dtype=torch.bool, device=teacher.device)
    losses = []
    for i, j in enumerate(negatives):
        total = teacher.new_zeros(size, dtype=torch.float32)
        for band, query in enumerate(queries[i]):
            positive = (query * targets[band]).sum(dim=1)
            repelled = (query * queries[j][band].detach()).sum(dim=1)[:, None]
            if band == 1:
                in_batch = (query @ targets[band].T).masked_fill(same, float("-inf"))
                repelled = torch.cat([repelled, in_batch], dim=1)
            own = energies[i][band]
            weight = 1 / (1 + (teacher_energies[band] - own).abs() / (own + ENERGY_EPS))
            contrast = torch.nn.functional.softplus(repelled.logsumexp(dim=1) - positive)
            total = total + weight * positive.detach().clamp_min(0) * contrast
        losses.append(total.mean())
    return torch.stack(losses)
