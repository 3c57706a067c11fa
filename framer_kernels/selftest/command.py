"""The command: runs the comparisons, prints one table and the verdict."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from framer_kernels.backends import triton_problem
from framer_kernels.selftest import parity, speed

HEADER = (
    "backend",
    "dtype",
    "cases",
    "forward error",
    "budget",
    "gradient error",
    "budget",
    "ms",
    "vs reference",
    "vs compiled",
)
BANDWIDTH_HEADER = ("GB/s", "of a copy")
TIMED_ON_CPU = (torch.float32,)
TIMED_ON_GPU = (torch.float32, torch.bfloat16)


class _Row(NamedTuple):
    subject: parity.Subject
    comparisons: list[parity.Comparison]
    seconds: float | None
    failure: str | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Tests and times every backend that this machine has.

    Args:
        arguments: Of the command line; None takes the process's.

    Returns:
        0 if all errors are within their budgets, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m framer_kernels.selftest", description="Tests and times every backend."
    )
    parser.add_argument("--quick", action="store_true", help="few shapes, small timings, no torch.compile")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    options = parser.parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    quick: bool = options.quick

    size = speed.Size.for_device(device, quick=quick)
    rounds = 3 if quick else 7
    timed = TIMED_ON_GPU if device.type == "cuda" else TIMED_ON_CPU
    rows = [_test(subject, device, size, rounds, timed, quick=quick) for subject in parity.subjects(device)]
    compiled = {} if quick else {dtype: _compiled_seconds(size, dtype, device, rounds) for dtype in timed}
    copy = speed.copy_bandwidth(device) if device.type == "cuda" else None

    threads = torch.get_num_threads()
    print(f"framer_kernels self-test: {_device_name(device)}, torch {torch.__version__}, {threads} threads")
    print(f"Errors are relative to the definition in float64; times are of {size}, forward and backward.")
    print()
    header = HEADER if copy is None else (*HEADER, *BANDWIDTH_HEADER)
    _print_table([header, *(_cells(row, rows, compiled, copy, size) for row in rows), *_compiled_cells(rows, compiled)])
    print()
    return _print_verdict(rows, device)


def _test(
    subject: parity.Subject,
    device: torch.device,
    size: speed.Size,
    rounds: int,
    timed: Sequence[torch.dtype],
    *,
    quick: bool,
) -> _Row:
    comparisons: list[parity.Comparison] = []
    seconds = None
    try:
        comparisons = parity.compare(subject, device, quick=quick)
        if subject.dtype in timed:
            loss = speed.backend_loss(subject.backend, subject.precision)
            seconds = speed.seconds(loss, size, subject.dtype, device, rounds=rounds)
    except Exception as error:  # whatever a backend raises is a finding
        return _Row(subject, comparisons, seconds, f"{type(error).__name__}: {error}")
    return _Row(subject, comparisons, seconds, None)


def _compiled_seconds(size: speed.Size, dtype: torch.dtype, device: torch.device, rounds: int) -> float | None:
    try:
        return speed.seconds(speed.compiled_loss(), size, dtype, device, rounds=rounds)
    except Exception as error:  # a machine without a compiler can use the backends all the same
        print(f"torch.compile of the rfft2 form failed: {type(error).__name__}: {str(error).splitlines()[0]}")
        return None


def _reference_seconds(rows: Sequence[_Row], dtype: torch.dtype) -> float | None:
    found = [row.seconds for row in rows if row.subject.backend == "reference" and row.subject.dtype == dtype]
    return found[0] if found else None


def _cells(
    row: _Row,
    rows: Sequence[_Row],
    compiled: dict[torch.dtype, float | None],
    copy: float | None,
    size: speed.Size,
) -> tuple[str, ...]:
    dtype = row.subject.dtype
    cells = [row.subject.name, _dtype_name(dtype), str(len(row.comparisons) // 2)]
    kinds: tuple[parity.Kind, ...] = ("forward", "gradient")
    for kind in kinds:
        worst = parity.worst(row.comparisons, kind)
        cells += ["-", "-"] if worst is None else [f"{worst.error:.1e}", f"{worst.budget:.1e}"]
    cells += _time_cells(row.seconds, _reference_seconds(rows, dtype), compiled.get(dtype))
    if copy is not None:
        rate = None if row.seconds is None else size.floor_bytes(dtype) / row.seconds
        cells += ["-", "-"] if rate is None else [f"{rate / 1e9:.0f}", f"{100 * rate / copy:.0f} %"]
    return tuple(cells)


def _compiled_cells(rows: Sequence[_Row], compiled: dict[torch.dtype, float | None]) -> list[tuple[str, ...]]:
    return [
        ("compiled rfft2", _dtype_name(dtype), *["-"] * 5, *_time_cells(value, _reference_seconds(rows, dtype), None))
        for dtype, value in compiled.items()
    ]


def _time_cells(seconds: float | None, reference: float | None, compiled: float | None) -> list[str]:
    if seconds is None:
        return ["-", "-", "-"]
    ratios = [f"{other / seconds:.2f} x" if other is not None else "-" for other in (reference, compiled)]
    return [f"{1e3 * seconds:.2f}", *ratios]


def _print_table(lines: Sequence[tuple[str, ...]]) -> None:
    columns = len(lines[0])
    full = [(*line, *["-"] * (columns - len(line))) for line in lines]
    widths = [max(len(line[i]) for line in full) for i in range(columns)]
    for number, line in enumerate(full):
        names, numbers = line[:2], line[2:]
        cells = [cell.ljust(width) for cell, width in zip(names, widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(numbers, widths[2:], strict=True)]
        print("  ".join(cells))
        if number == 0:
            print("  ".join("-" * width for width in widths))


def _print_verdict(rows: Sequence[_Row], device: torch.device) -> int:
    failed = False
    for row in rows:
        name = f"{row.subject.name} {_dtype_name(row.subject.dtype)}"
        over = [each for each in row.comparisons if not each.passed]
        if row.failure is not None:
            print(f"FAIL  {name}: {row.failure}")
        elif over:
            kinds: tuple[parity.Kind, ...] = ("forward", "gradient")
            for worst in filter(None, (parity.worst(over, kind) for kind in kinds)):
                count = sum(each.kind == worst.kind for each in over)
                print(
                    f"FAIL  {name}: {worst.kind} error {worst.error:.1e} is over its budget {worst.budget:.1e} at "
                    f"{worst.case} ({count} of {len(row.comparisons) // 2} cases)"
                )
        elif not row.comparisons:
            print(f"FAIL  {name}: computes none of the cases")
        else:
            print(f"PASS  {name}")
            continue
        failed = True
    if device.type == "cuda":
        problem = triton_problem(device)
        if problem is not None:
            print(f"note  triton was not tested: {problem}")
    else:
        print(f"note  triton was not tested: the device is {device}")
    return int(failed)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{device}, {models[0] if models else platform.processor() or platform.machine()}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
