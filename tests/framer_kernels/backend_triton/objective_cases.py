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
from framer_kernels.products import BandProducts

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


def main() -> None:
    for (size, shared), options in itertools.product([(1, False), (3, False), (3, True), (5, False)], OPTIONS):
        made = products(4, size, size, shared=shared)
        arguments = {"negatives": NEGATIVES, "shared_negatives": shared, "rounding": 1e-6, **options}
        exact = objective.loss_and_coefficients(made, **arguments)
        found = triton.loss_and_coefficients(BandProducts(*(field.float() for field in made)), **arguments)
        errors = {
            name: float((value.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-3))
            for kind, wanted in zip(found, exact, strict=True)
            for name, value, truth in zip(kind._fields, kind, wanted, strict=True)
        }
        print(json.dumps([f"{size}-{shared}-{options['terms']}-{options['faw']}", errors]))
    whole = products(4, 2, 5, shared=False)
    norms = objective.TargetNorms(torch.rand(5, dtype=torch.float64) + 1, torch.rand(4, 5, dtype=torch.float64) + 1)
    arguments = {"negatives": NEGATIVES, "shared_negatives": False, "rounding": 1e-6, "first": 0, **OPTIONS[0]}
    exact = objective.loss_and_coefficients(whole, targets=norms, **arguments)
    single = objective.TargetNorms(*(norm.float() for norm in norms))
    found = triton.loss_and_coefficients(BandProducts(*(f.float() for f in whole)), targets=single, **arguments)
    errors = {
        name: float((value.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-3))
        for kind, wanted in zip(found, exact, strict=True)
        for name, value, truth in zip(kind._fields, kind, wanted, strict=True)
    }
    print(json.dumps(["ranks", errors]))


if __name__ == "__main__":
    main()
