"""Numerical derivatives of the public functions with the Triton kernels, in Triton's interpreter.

`torch.autograd.gradcheck` works in double precision and the kernels in float32: coordinates along a few directions are
varied in double, and the maps that they make are rounded. Prints one line of JSON for every case: its name, and what
`gradcheck` has against it, empty if nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import interpreter  # noqa: F401  (mends the interpreter)
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.autograd.gradcheck import GradcheckError

from framer_kernels import BandSplit, band_similarity, framer_loss, inter_contrastive_loss, intra_contrastive_loss
from framer_kernels.backends.triton.configs import ProductConfig

DIRECTIONS = 3
"""Of each map that is differentiated; of length 1."""
STEP = 2.0**-5
"""Results of size 1 are off by about 2e-7 in float32, difference quotients by that over the step: 6e-6. What they leave
out is a sixth of the squared step times the third derivative, which is of the size of (length of a band * temperature)
to the power of -3, below 0.03 here: 5e-6."""
TOLERANCE = 2e-5
"""Twice the sum of these; the derivatives are 1e-3 to 5e-2."""
SHAPES = [(2, 2, 4, 4), (2, 3, 5, 4)]
OPTIONS: dict[str, Any] = {"backend": "triton", "precision": "ieee", "bands": BandSplit.radial(0.6)}

Function = Callable[[list[Tensor], Tensor, Tensor], Tensor]
"""Of maps to differentiate, a negative and a teacher, one number for each map, layer or sample."""


def loss(**settings: Any) -> Function:
    """Layers whose negative is one that stays as it is: losses do see their negative, but give it no gradient."""
    gates: list[Tensor] = []

    def values(maps: list[Tensor], negative: Tensor, teacher: Tensor) -> Tensor:
        count = len(maps)
        out = framer_loss(
            [*maps, negative], teacher, negatives=[*[count] * count, 0], temperature=0.5, **OPTIONS, **settings
        )
        if not gates:
            fam = settings.get("fam", True)
            gates.extend(w * a if fam else w for w, a in zip(out[3:5], out[5:7], strict=True))
        # FAW and FAM have no gradient, but differences would see them change: the value is that with the gates of the
        # first call, the gradient that of the loss.
        held = (gates[0] * out.intra + gates[1] * out.inter).mean(dim=1)
        return (out.loss + (held - out.loss).detach())[:count]

    return values


def intra(maps: list[Tensor], negative: Tensor, teacher: Tensor) -> Tensor:
    return intra_contrastive_loss(maps[0], teacher, negative, **OPTIONS)


def inter(maps: list[Tensor], negative: Tensor, teacher: Tensor) -> Tensor:
    return inter_contrastive_loss(maps[0], teacher, negative, **OPTIONS)


def inter_shared(maps: list[Tensor], negative: Tensor, teacher: Tensor) -> Tensor:
    return inter_contrastive_loss(maps[0], teacher, negative, shared_negatives=True, **OPTIONS)


def similarity(maps: list[Tensor], negative: Tensor, teacher: Tensor) -> Tensor:
    return torch.cat(band_similarity(maps[0], teacher, **OPTIONS))


CASES: dict[str, tuple[Function, int, tuple[int, ...]]] = {
    "loss": (loss(faw=None, fam=False), 2, SHAPES[0]),
    "loss shared": (loss(faw=None, fam=False, shared_negatives=True), 2, SHAPES[1]),
    "loss with gates": (loss(), 2, SHAPES[1]),
    "loss with gates shared": (loss(faw="absolute", shared_negatives=True), 1, SHAPES[0]),
    "intra": (intra, 1, SHAPES[0]),
    "inter": (inter, 1, SHAPES[1]),
    "inter shared": (inter_shared, 1, SHAPES[0]),
    "similarity": (similarity, 1, SHAPES[1]),
}


def check(function: Function, count: int, shape: tuple[int, ...]) -> str:
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    # A mean, so that the low band is not short.
    teacher, negative, *maps = (noise(*shape) + 0.5 for _ in range(count + 2))
    directions = noise(count, DIRECTIONS, *shape)
    directions = directions / directions.flatten(2).norm(dim=2)[..., None, None, None, None]

    def scalar(coordinates: Tensor) -> Tensor:
        moved = torch.einsum("nk,nkbchw->nbchw", coordinates, directions)
        students = [(x + dx).float() for x, dx in zip(maps, moved, strict=True)]
        values = function(students, negative.float(), teacher.float()).double()
        # Unlike weights: layers and samples may not be mistaken for one another.
        return (values * torch.linspace(0.5, 1.5, len(values), dtype=torch.float64)).sum()

    coordinates = torch.zeros(count, DIRECTIONS, dtype=torch.float64, requires_grad=True)
    try:
        gradcheck(scalar, (coordinates,), eps=STEP, atol=TOLERANCE, rtol=0.0, check_undefined_grad=False)
    except GradcheckError as error:
        return str(error)
    return ""


def main() -> None:
    torch.set_num_threads(1)
    choose = ProductConfig.choose
    # Programs run one after another here.
    ProductConfig.choose = lambda rows, targets: replace(choose(rows, targets), programs=6)  # type: ignore[method-assign]
    for name, case in CASES.items():
        print(json.dumps([name, check(*case)]), flush=True)


if __name__ == "__main__":
    main()
