"""The measurements of the report, one function a part; each gives what JSON can hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import torch

from benchmarks.cases import LossCase, LossFunction, forward_and_backward, implementations
from benchmarks.full_step import SD35_MEDIUM_STEP, step_peak, workspace_bytes
from benchmarks.measure import Times, interleaved, median_interval
from benchmarks.memory import peak_allocated, saved_bytes
from benchmarks.models import StepCase, paired_steps
from framer_kernels import Representation

Result = dict[str, Any]

LOSS_ROUNDS = 7
SWEEP_ROUNDS = 3
STEP_PAIRS = 25
SWEEP_BASE = LossCase(layers=4, batch=4, channels=192)
SWEEPS: dict[str, list[LossCase]] = {
    "batch": [replace(SWEEP_BASE, batch=n) for n in (1, 2, 4, 8)],
    "map size": [SWEEP_BASE.with_size(n) for n in (16, 24, 32, 48, 64)],
    "layers": [replace(SWEEP_BASE, layers=n) for n in (2, 4, 8, 16)],
}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def loss() -> Result:
    """All implementations at one size, both representations."""
    tables = []
    for representation in reversed(get_args(Representation)):
        case = LossCase(representation=representation, device=device())
        tables.append({"representation": representation, **_compare(implementations(), case, LOSS_ROUNDS)})
    return {"tables": tables}


def sweep() -> Result:
    """Time and memory against one size at a time. The compiled peer is left out: it compiles for every size anew."""
    # Both ends of every sweep vary; the base case, which they share, is measured once in each.
    found: Result = {}
    for name, cases in SWEEPS.items():
        found[name] = [
            {"value": _value(name, case), **_compare(implementations(compiled=False), case, SWEEP_ROUNDS)}
            for case in (replace(case, device=device()) for case in cases)
        ]
    return found


def _value(name: str, case: LossCase) -> int:
    return {"batch": case.batch, "map size": case.height, "layers": case.layers}[name]


def _compare(functions: dict[str, LossFunction], case: LossCase, rounds: int) -> Result:
    steps = {name: forward_and_backward(function, case) for name, function in functions.items()}
    times = interleaved(steps, rounds=rounds, warmup=2)
    rows = []
    for name, function in functions.items():
        students, teacher = case.features()
        saved = saved_bytes(_forward(function, students, teacher, case.settings), without=[*students, teacher])
        rows.append(
            {
                "name": name,
                "seconds": times.median(name),
                "saved": saved,
                "peak": peak_allocated(steps[name]),
            }
        )
    return {
        "layers": case.layers,
        "shape": list(case.shape),
        "feature_bytes": case.feature_bytes,
        "rows": rows,
        **_noise(times),
    }


def _forward(function: LossFunction, *arguments: Any) -> Callable[[], object]:
    students, teacher, settings = arguments
    return lambda: function(students, teacher, **settings)


def _noise(times: Times) -> Result:
    return {"rounds": len(next(iter(times.seconds.values()))), "other_cores": max(times.other_cores, default=None)}


def step() -> Result:
    """Training steps at the width of SD3.5 medium, with and without FRAMER, alternating."""
    case = StepCase()
    times = interleaved(paired_steps(case), rounds=STEP_PAIRS)
    ratio = median_interval(times.ratios("with FRAMER", "without FRAMER"))
    return {
        "layers": case.layers,
        "tokens": (case.latent // 2) ** 2,
        "batch": case.batch,
        "seconds": {name: times.median(name) for name in times.seconds},
        "ratio": list(ratio),
        **_noise(times),
    }


def memory() -> Result:
    """Peak of a whole step of SD3.5 medium, by tensors without storage."""
    case = SD35_MEDIUM_STEP
    rows = []
    for name, accumulating in (("AdamW step", False), ("micro-batch that adds to gradients", True)):
        without, with_framer = (step_peak(case, framer=framer, accumulating=accumulating) for framer in (False, True))
        rows.append({"name": name, "without": without.bytes, "with": with_framer.bytes})
    width = case.heads * case.head_width
    features = LossCase(layers=4, batch=case.batch, channels=width, dtype=case.dtype, representation="complex")
    return {
        "layers": case.layers,
        "batch": case.batch,
        "tokens": (case.latent // 2) ** 2,
        "rows": rows,
        "workspace": workspace_bytes(features),
    }


PARTS: dict[str, Callable[[], Result]] = {"loss": loss, "sweep": sweep, "step": step, "memory": memory}
