"""Launch of the objective: the same as `framer_kernels.objective`, with its arguments, in one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from framer_kernels import objective
from framer_kernels.backends.triton import objective_kernels
from framer_kernels.backends.triton.addresses import device_guard, upload
from framer_kernels.backends.triton.configs import COMPILER, power_of_two
from framer_kernels.precision import ENERGY_EPS, NORM_FLOOR
from framer_kernels.products import BandProducts
from framer_kernels.types import FawMode

LARGEST_ROW = 4096
"""Samples of all ranks that fit one program."""


def loss_and_coefficients(
    products: BandProducts,
    *,
    negatives: Sequence[int],
    temperature: float,
    faw: FawMode | None,
    fam: bool,
    shared_negatives: bool,
    rounding: float,
    terms: objective.Terms = "both",
    targets: objective.TargetNorms | None = None,
    first: int = 0,
    share: float = 1.0,
) -> objective.Objective:
    """The loss of every layer and sample, its parts, and the coefficients of its gradient."""
    layers, batch, groups = products.teacher_dot_hf.shape
    if groups > LARGEST_ROW:
        return objective.loss_and_coefficients(
            products,
            negatives=negatives,
            temperature=temperature,
            faw=faw,
            fam=fam,
            shared_negatives=shared_negatives,
            rounding=rounding,
            terms=terms,
            targets=targets,
            first=first,
            share=share,
        )
    device = products.energy.device
    inputs = BandProducts(*(field.contiguous() for field in products))
    target_norm, target_negatives = inputs.teacher_norm_squared[1], inputs.norm_squared
    if targets is not None:
        target_norm, target_negatives = (norm.contiguous() for norm in targets)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    out = objective.Objective(
        empty(layers, batch),
        empty(8, layers, batch),
        empty(layers, batch, 5 if terms == "intra" else 4 + groups + (groups if shared_negatives else 1)),
    )
    with device_guard(device):
        chosen = upload(negatives, device)
        objective_kernels.framer_loss_objective_fwd_kernel[(layers, batch)](
            inputs.energy, inputs.norm_squared, inputs.teacher_energy, inputs.teacher_norm_squared,
            inputs.teacher_dot_lf, inputs.teacher_dot_hf, inputs.negative_dot_lf, inputs.negative_dot_hf,
            target_norm, target_negatives, chosen, *out, layers, inputs.energy.shape[1], batch, groups,
            out.coefficients.shape[2], first, float(temperature), share,
            BG=power_of_two(groups), FAW=faw or "none", FAM=fam, INTRA=terms != "inter", INTER=terms != "intra",
            SHARED=shared_negatives, LOCAL=targets is None, FLOOR=NORM_FLOOR, EPS=ENERGY_EPS, ROUNDING=rounding,
            num_warps=1 if groups <= 256 else 4, **COMPILER,
        )  # fmt: skip
    return out
