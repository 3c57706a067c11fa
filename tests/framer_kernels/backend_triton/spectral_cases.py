"""Runs the kernels that form bins in Triton's interpreter and compares with float64, as `parity_cases` does.

Random features leave no magnitude so near a quantile that float32 would put it in the other band.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import parity_cases
import torch
from parity_cases import Case

from framer_kernels.backends import triton
from framer_kernels.types import BandKind, Representation

KINDS: list[tuple[BandKind, Representation]] = [
    ("radial", "magnitude"),
    ("quantile", "complex"),
    ("quantile", "magnitude"),
]
SMALL = [
    (2, 9, 8, 8),
    (1, 1, 4, 4),
    (2, 5, 7, 12),
    (2, 3, 16, 32),
    (1, 5, 7, 5),
    (3, 2, 9, 16),
    (5, 1, 6, 8),
    (2, 3, 12, 7),
    (1, 4, 8, 8),
    (2, 2, 4, 33),
    (1, 1, 5, 4),
]
LARGE = [(3, 17, 8, 8), (5, 3, 9, 16), (2, 9, 32, 32), (2, 6, 28, 48), (2, 4, 64, 64)] * 2
SHAPES = {"few": SMALL[:4], "small": SMALL, "large": LARGE}
ARITHMETIC = [
    ("float32", "bf16x3"),
    ("float32", "ieee"),
    ("bfloat16", "bf16x3"),
    ("float32", "tf32"),
    ("float16", "tf32"),
]
CUTOFFS = [0.25, 0.6, 0.4]


def cases(size: str) -> list[Case]:
    out = []
    for k, shape in enumerate(SHAPES[size]):
        for kind, representation in KINDS:
            n = len(out)
            dtype, precision = ARITHMETIC[n % len(ARITHMETIC)]
            layout = parity_cases.LAYOUTS[(k + n) % 4]
            negatives = tuple(parity_cases.NEGATIVES[k % 3])
            shared, cross = n % 4 == 0, (n + k) % 3 == 0
            cutoff = CUTOFFS[(n // 2) % 3]
            out.append(Case(shape, layout, dtype, precision, negatives, cutoff, shared, cross, kind, representation))
    return out


def run_dead(case: Case) -> dict[str, float]:
    """The largest gradient that channels and samples of zeros have, NaN being infinite."""
    *maps, teacher = parity_cases.features(case)
    maps[0][:, 1] = 0
    maps[1][0] = 0
    gradients = triton.gradients(
        maps, teacher, parity_cases.coefficients(case), torch.ones(3, 2), negatives=case.negatives,
        shared_negatives=case.shared,
        needed=[True] * 3, **case.options,
    )  # fmt: skip
    assert gradients[0] is not None
    assert gradients[1] is not None
    alive = max(float(x.abs().amax().nan_to_num(torch.inf)) for x in gradients if x is not None)
    dead = max(float(x.abs().amax().nan_to_num(torch.inf)) for x in (gradients[0][:, 1], gradients[1][0]))
    return {"dead": dead, "alive": float(alive < torch.inf)}


if __name__ == "__main__":
    parity_cases.prepare()
    for kind, representation in KINDS:
        case = replace(parity_cases.ISOLATION, kind=kind, representation=representation)
        print(json.dumps({"name": f"isolation {case.name}", "errors": parity_cases.run_isolation(case)}), flush=True)
    case = Case((2, 3, 8, 8), "tokens", "float32", "bf16x3", (1, 2, 0), 0.25, True, representation="magnitude")
    print(json.dumps({"name": f"dead {case.name}", "errors": run_dead(case)}), flush=True)
    for case in cases(sys.argv[1]):
        print(json.dumps({"name": case.name, "errors": parity_cases.run(case)}), flush=True)
