"""Runs the public functions with ``backend="triton"`` in Triton's interpreter against the definition in float64.

Prints one line of JSON for every case: its name and its largest error relative to the largest value.
"""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import interpreter  # noqa: F401  (mends the interpreter)
import torch
from torch import Tensor

from framer_kernels import (
    BandSplit,
    band_energy,
    band_similarity,
    framer_loss,
    inter_contrastive_loss,
    intra_contrastive_loss,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "shared": {"shared_negatives": True, "faw": "absolute"},
    "unweighted": {"faw": None, "fam": False, "temperature": 0.1},
}
SPECTRAL: dict[str, dict[str, Any]] = {
    "magnitude": {"representation": "magnitude"},
    "quantile": {"bands": BandSplit.quantile(0.25), "shared_negatives": True},
    "both": {"bands": BandSplit.quantile(0.6), "representation": "magnitude"},
}


def maps(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(3, 5, 8, 12, generator=generator)
    students = [0.5 * teacher + torch.randn(teacher.shape, generator=generator) for _ in range(3)]
    return [x.to(dtype).requires_grad_() for x in students], teacher.to(dtype)


def loss(dtype: torch.dtype, **settings: Any) -> list[Tensor]:
    students, teacher = maps(dtype)
    out = framer_loss(students, teacher, negatives=[1, 2, 0], **settings)
    upstream = torch.linspace(0.5, 1.5, 3, dtype=out.loss.dtype)
    return [*(field.detach() for field in out), *torch.autograd.grad((out.loss * upstream).sum(), students)]


def operations(dtype: torch.dtype, **settings: Any) -> list[Tensor]:
    (x, y, _), teacher = maps(dtype)
    values = [
        intra_contrastive_loss(x, teacher, y, **settings),
        inter_contrastive_loss(x, teacher, y, **settings),
        *band_similarity(x, y, **settings),
    ]
    gradients = [torch.autograd.grad(value.sum(), x, retain_graph=True)[0] for value in values]
    return [*(value.detach() for value in values), *gradients, *band_energy(x, **settings)]


def main() -> None:
    for precision in ("ieee", "bf16x3", "tf32"):
        for name, options in (OPTIONS | SPECTRAL if precision == "bf16x3" else OPTIONS).items():
            found = loss(torch.float32, backend="triton", precision=precision, **options)
            print(
                json.dumps([f"{precision} {name}", worst(found, loss(torch.float64, backend="reference", **options))])
            )
        found = operations(torch.float32, backend="triton", precision=precision)
        print(json.dumps([f"{precision} operations", worst(found, operations(torch.float64, backend="reference"))]))


def worst(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(
        float((value.double() - truth).abs().max() / truth.abs().max())
        for value, truth in zip(found, exact, strict=True)
    )


if __name__ == "__main__":
    main()
