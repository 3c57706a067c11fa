"""Runs the kernels in Triton's interpreter and compares with float64; the tests start it as a process of its own.

Prints one line of JSON for every case: its name and its errors relative to the largest value.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import interpreter  # noqa: F401  (mends the interpreter)
import numpy as np
import torch
from torch import Tensor

from framer_kernels.backends import portable, triton
from framer_kernels.backends.triton.configs import ProductConfig
from framer_kernels.bands import BandSplit
from framer_kernels.products import GradientCoefficients
from framer_kernels.types import BandKind, Representation

SHAPES = [
    (3, 17, 8, 8),
    (2, 20, 13, 24),
    (1, 1, 4, 4),
    (2, 6, 28, 48),
    (2, 4, 64, 64),
    (1, 5, 7, 5),
    (5, 3, 16, 16),
    (2, 9, 32, 32),
]
LAYOUTS = ["tokens", "images", "mixed", "sliced"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ARITHMETIC = [
    ("float32", "bf16x3"),
    ("bfloat16", "bf16x3"),
    ("float16", "tf32"),
    ("float32", "ieee"),
    ("bfloat16", "tf32"),
    ("float32", "tf32"),
]
# A cycle; two layers with one negative; a negative that is no student.
NEGATIVES = [[1, 2, 0], [1, 0, 1], [2, 3, 0]]
CUTOFFS = [0.25, 0.25, 0.6, 0.0]


@dataclass(frozen=True)
class Case:
    """One combination of what the backend takes."""

    shape: tuple[int, int, int, int]
    layout: str
    dtype: str
    precision: str
    negatives: tuple[int, ...]
    cutoff: float
    shared: bool
    cross: bool = False
    kind: BandKind = "radial"
    representation: Representation = "complex"

    @property
    def options(self) -> dict[str, Any]:
        """What all functions of a backend take."""
        return {
            "bands": BandSplit(self.kind, self.cutoff),
            "representation": self.representation,
            "precision": self.precision,
        }

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        negatives = "".join(map(str, self.negatives))
        shared = "-shared" if self.shared else ""
        features = f"{shape}-{self.layout}-{self.dtype}-{self.precision}-{negatives}"
        return f"{features}-{self.kind}{self.cutoff}-{self.representation}{shared}"


def cases() -> list[Case]:
    out = []
    for k in range(6 * len(SHAPES)):
        s, r = k % len(SHAPES), k // len(SHAPES)
        if r > 3 and max(SHAPES[s][2:]) > 32:
            continue
        dtype, precision = ARITHMETIC[r]
        options = (CUTOFFS[(s + 3 * r) % 4], (s + r) % 5 == 0, (s + r) % 3 == 0)
        negatives = tuple(NEGATIVES[(s + 2 * r) % 3])
        out.append(Case(SHAPES[s], LAYOUTS[(s + r) % 4], dtype, precision, negatives, *options))
    return out


def features(case: Case, maps: int = 4) -> list[Tensor]:
    """Maps of one subject with a mean, the teacher last."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(case.shape, generator=generator) + 1
    out = []
    for i in range(maps + 1):
        x = (0.6 * base + torch.randn(case.shape, generator=generator)).to(DTYPES[case.dtype])
        if case.layout == "tokens" or (case.layout == "mixed" and i % 2):
            x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        elif case.layout == "sliced":
            b, c, h, w = case.shape
            frame = torch.full((b, c + 3, h + 1, w + 2), float("nan"), dtype=x.dtype)
            frame[:, 2 : c + 2, 1:, 1 : w + 1] = x
            x = frame[:, 2 : c + 2, 1:, 1 : w + 1]
        out.append(x)
    return out


def coefficients(case: Case) -> GradientCoefficients:
    generator = torch.Generator().manual_seed(1)
    layers, size = len(case.negatives), case.shape[0]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    pairs = [draw(layers, size) for _ in range(4)]
    others = size if case.shared else 1
    return GradientCoefficients(*pairs, draw(layers, size, size), draw(layers, size, others))


def error(value: Tensor, exact: Tensor) -> float:
    if value.shape != exact.shape or not bool(value.isfinite().all()):
        return float("inf")
    return float((value.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))


def run(case: Case) -> dict[str, float]:
    *maps, teacher = features(case)
    exact_maps, exact_teacher = [x.double() for x in maps], teacher.double()
    options = {"negatives": case.negatives, "shared_negatives": case.shared, **case.options}
    products = triton.measure(maps, teacher, **options)
    exact = portable.measure(exact_maps, exact_teacher, **options)
    errors = {name: error(getattr(products, name), getattr(exact, name)) for name in products._fields}
    weights = coefficients(case)
    needed = [True, True, not case.shared]
    upstream = torch.linspace(-0.5, 0.25, len(case.negatives))[:, None].expand(-1, case.shape[0])
    gradients = triton.gradients(maps, teacher, weights, upstream, needed=needed, **options)
    exact_weights = GradientCoefficients(*(field.double() for field in weights))
    exact_gradients = portable.gradients(
        exact_maps, exact_teacher, exact_weights, upstream.double(), needed=needed, **options
    )
    for i, (gradient, right) in enumerate(zip(gradients, exact_gradients, strict=True)):
        if gradient is None or right is None:
            errors[f"gradient{i}"] = 0.0 if gradient is right else float("inf")
            continue
        same = gradient.dtype == maps[i].dtype and gradient.stride() == torch.empty_like(maps[i]).stride()
        errors[f"gradient{i}"] = error(gradient, right) if same else float("inf")
    if case.cross:
        errors.update(run_cross(case, maps, teacher))
    return errors


def run_cross(case: Case, maps: list[Tensor], teacher: Tensor) -> dict[str, float]:
    """Another rank's samples, which may be fewer, and their teacher."""
    exact = [x.double() for x in maps]
    fewer = slice(case.shape[0] // 2, None)
    theirs, exact_theirs = [(x[3][fewer], x[2][fewer]) for x in (maps, exact)]
    products = triton.cross_products(maps[:2], teacher, *theirs, **case.options)
    right = portable.cross_products(exact[:2], teacher.double(), *exact_theirs, **case.options)
    weights = torch.randn(right.shape, generator=torch.Generator().manual_seed(2)).transpose(0, 1).contiguous()
    weights = weights.transpose(0, 1)
    sums, exact_sums = [x.clone() for x in maps[:2]], [x.clone() for x in exact[:2]]
    triton.add_cross_gradients(sums, weights, maps[:2], teacher, *theirs, **case.options)
    portable.add_cross_gradients(
        exact_sums, weights.double(), exact[:2], teacher.double(), *exact_theirs, **case.options
    )
    added = max(error(a, b) for a, b in zip(sums, exact_sums, strict=True))
    return {"cross_products": error(products, right), "gradient_cross": added}


ISOLATION = Case((3, 5, 8, 8), "tokens", "float32", "bf16x3", (1, 2, 3), 0.25, False)


def run_isolation(case: Case) -> dict[str, float]:
    """NaN and infinity in sample 1 of layer 0 reach neither other samples nor layers that do not see it."""
    *maps, teacher = features(case)
    maps[0][1, 2, 3, 4] = float("nan")
    maps[0][1, 3, 0, 0] = float("inf")
    options = {"negatives": case.negatives, "shared_negatives": False, **case.options}
    products = triton.measure(maps, teacher, **options)
    gradients = triton.gradients(maps, teacher, coefficients(case), torch.ones(3, 3), needed=[True] * 3, **options)
    spread = dict.fromkeys(("products", "gradients"), 0)
    for name, value in zip(products._fields, products, strict=True):
        bad = ~value.isfinite()
        if not name.startswith("teacher_e") and not name.startswith("teacher_n"):
            sick = bad[:, 0, 1] if value.dim() == 3 and name in ("energy", "norm_squared") else bad[0, 1]
            if not bool(sick.any()):
                spread["products"] += 1
            sick.fill_(False)
        spread["products"] += int(bad.sum())
    for i, gradient in enumerate(gradients):
        if gradient is not None:
            bad = ~gradient.isfinite()
            if i == 0:
                bad[1] = False
            spread["gradients"] += int(bad.sum())
    return {name: float(count) for name, count in spread.items()}


def few_programs(choose: Any) -> Any:
    """Product configurations for an interpreter, whose programs run one after another."""
    return lambda rows, targets: replace(choose(rows, targets), programs=6)


def poisoned(make: Any) -> Any:
    """A factory of tensors whose memory no kernel may leave as it is."""

    def made(*args: Any, **options: Any) -> Tensor:
        out: Tensor = make(*args, **options)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    return made


def prepare() -> None:
    """One thread, few programs, and memory that is not initialised is NaN."""
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    ProductConfig.choose = few_programs(ProductConfig.choose)
    torch.empty, torch.empty_like = poisoned(torch.empty), poisoned(torch.empty_like)


if __name__ == "__main__":
    prepare()
    print(json.dumps({"name": "isolation", "errors": run_isolation(ISOLATION)}), flush=True)
    for case in cases():
        if len(sys.argv) < 2 or sys.argv[1] in case.name:
            print(json.dumps({"name": case.name, "errors": run(case)}), flush=True)
