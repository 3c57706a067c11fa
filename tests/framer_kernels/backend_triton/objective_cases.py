"""Runs the objective's kernel in Triton's interpreter against `framer_kernels.objective` in float64.

Prints one line of JSON for every case: its name and the error of each result relative to its largest value.
"""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import interpreter  # noqa: F401  (mends the interpreter)
import torch
from torch import Tensor

from framer_kernels import objective
from framer_kernels.backends import triton
from framer_kernels.products import BandProducts, GradientCoefficients
from framer_kernels.types import FramerLoss

NEGATIVES = [1, 2, 0, 1]
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 1.0, "faw": "relative_student", "fam": True, "terms": "both"},
    {"temperature": 0.1, "faw": "relative_teacher", "fam": False, "terms": "intra"},
    {"temperature": 0.5, "faw": "absolute", "fam": True, "terms": "inter"},
    {"temperature": 0.3, "faw": None, "fam": False, "terms": "both"},
]


def products(layers: int, size: int, groups: int, *, shared: bool) -> BandProducts:
    """Products of random vectors, so that norms and dots fit together; one student has no high band."""
    generator = torch.Generator().manual_seed(size)

    def vectors(*shape: int) -> Tensor:
        return torch.randn(*shape, 12, generator=generator, dtype=torch.float64)

    x, t = vectors(2, layers, size), vectors(2, groups)
    x[1, 0, 0] = 0
    x = x + 0.5 * t[:, None, :size]
    x[1, 0, 0] = 0
    y = x[:, NEGATIVES]
    others = torch.einsum("nbk,ngk->nbg", x[1], y[1])
    if groups > size and shared:
        others = torch.cat([others, torch.einsum("nbk,ngk->nbg", x[1], vectors(layers, groups - size))], dim=2)
    diagonal = others[:, torch.arange(size), torch.arange(size), None]
    return BandProducts(
        energy=torch.rand(2, layers, size, generator=generator, dtype=torch.float64) + 0.1,
        norm_squared=x.square().sum(-1),
        teacher_energy=torch.rand(2, size, generator=generator, dtype=torch.float64) + 0.1,
        teacher_norm_squared=t[:, :size].square().sum(-1),
        teacher_dot_lf=(x[0] * t[0, None, :size]).sum(-1),
        teacher_dot_hf=torch.einsum("nbk,gk->nbg", x[1], t[1]),
        negative_dot_lf=(x[0] * y[0]).sum(-1),
        negative_dot_hf=others if shared else diagonal,
    )


def by_name(found: objective.Objective, *, shared: bool) -> dict[str, Tensor]:
    fields = dict(zip(FramerLoss._fields, [found.losses, *found.diagnostics], strict=True))
    return {**fields, **GradientCoefficients.of(found.coefficients, shared_negatives=shared)._asdict()}


def errors(made: BandProducts, targets: objective.TargetNorms | None = None, **arguments: Any) -> dict[str, float]:
    exact = objective.loss_and_coefficients(made, targets=targets, **arguments)
    single = None if targets is None else objective.TargetNorms(*(norm.float() for norm in targets))
    found = triton.loss_and_coefficients(BandProducts(*(f.float() for f in made)), targets=single, **arguments)
    shared = arguments["shared_negatives"]
    right = by_name(exact, shared=shared)
    return {
        name: float((value.double() - right[name]).abs().max() / right[name].abs().max().clamp_min(1e-3))
        for name, value in by_name(found, shared=shared).items()
        if value.numel() or right[name].numel()  # IntraCL alone has no teacher_hf
    }


def main() -> None:
    for (size, shared), options in itertools.product([(1, False), (3, False), (3, True), (5, False)], OPTIONS):
        made = products(4, size, size, shared=shared)
        found = errors(made, negatives=NEGATIVES, shared_negatives=shared, rounding=1e-6, share=1 / size, **options)
        print(json.dumps([f"{size}-{shared}-{options['terms']}-{options['faw']}", found]))
    whole = products(4, 2, 5, shared=False)
    norms = objective.TargetNorms(torch.rand(5, dtype=torch.float64) + 1, torch.rand(4, 5, dtype=torch.float64) + 1)
    found = errors(whole, norms, negatives=NEGATIVES, shared_negatives=False, rounding=1e-6, first=0, **OPTIONS[0])
    print(json.dumps(["ranks", found]))


if __name__ == "__main__":
    main()
