"""Lets the CPU pass for a GPU in Triton's interpreter, so that ``backend="auto"`` takes the kernels, also compiled.

Prints one line of JSON for every finding: its name and a number.
"""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import interpreter  # noqa: F401  (mends the interpreter)
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from framer_kernels import (
    backends,
    band_energy,
    band_similarity,
    framer_loss,
    inter_contrastive_loss,
    intra_contrastive_loss,
)

NEGATIVES = [1, 2, 0]


def total(maps: list[Tensor], teacher: Tensor, backend: Any) -> Tensor:
    settings: dict[str, Any] = {"backend": backend, "precision": "ieee"}
    out = framer_loss([2 * x for x in maps], teacher, negatives=NEGATIVES, **settings)
    inter = inter_contrastive_loss(maps[0], teacher, maps[1], **settings)
    intra = intra_contrastive_loss(maps[1], teacher, maps[0], **settings)
    similarity = band_similarity(maps[2], teacher, **settings)
    energy = band_energy(maps[0], **settings)
    return out.loss.sum() + out.intra.sum() + (inter + intra + similarity.hf + energy.hf).sum()


def step(function: Any, maps: list[Tensor], teacher: Tensor, backend: str) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in maps]
    value = function(leaves, teacher, backend)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def worst(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, *noise = (torch.randn(2, 3, 4, 8, generator=generator) for _ in range(4))
    maps = [0.5 * teacher + x for x in noise]
    expected = step(total, maps, teacher, "portable")
    print(json.dumps(["probe", backends.triton_problem(teacher.device) or ""]))

    triton = backends.load_backend("triton")
    launched: list[str] = []
    measure = triton.measure

    def counted(*arguments: Any, **options: Any) -> Any:
        launched.append("measure")
        return measure(*arguments, **options)

    triton.measure = counted  # type: ignore[method-assign]
    step(total, maps, teacher, "auto")
    print(json.dumps(["kernels on the CPU by themselves", len(launched)]))

    backends._is_gpu = lambda device: True
    print(json.dumps(["error", worst(step(total, maps, teacher, "auto"), expected)]))
    print(json.dumps(["kernels", len(launched)]))

    launched.clear()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(total, fullgraph=True, backend=counter)
    print(json.dumps(["compiled error", worst(step(compiled, maps, teacher, "auto"), expected)]))
    print(json.dumps(["compiled kernels", len(launched)]))
    print(json.dumps(["graphs", counter.frame_count]))


if __name__ == "__main__":
    main()
