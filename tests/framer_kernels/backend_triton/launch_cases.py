"""Counts what a step of the loss would launch on a device, in Triton's interpreter.

Prints a line of JSON for every number of layers and representation: the kernels, and torch's operations outside them
but for those that only make views or allocate.
"""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import interpreter  # noqa: F401  (mends the interpreter)
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from triton.runtime.interpreter import GridExecutor

from framer_kernels import framer_loss

# Views and allocations.
NO_LAUNCH = {
    "alias",
    "as_strided",
    "detach",
    "detach_",
    "empty",
    "empty_like",
    "expand",
    "lift_fresh",
    "select",
    "slice",
    "split_with_sizes",
    "unbind",
    "unsqueeze",
    "view",
}


def launches(layers: int, representation: str) -> tuple[list[str], list[str]]:
    kernels: list[str] = []
    execute = GridExecutor.__call__

    def counted(self: Any, *args: Any, **options: Any) -> None:
        kernels.append(self.fn.__name__)
        with record_function("kernel"):
            execute(self, *args, **options)

    students = [torch.randn(2, 8, 8, 8, requires_grad=True) for _ in range(layers)]
    teacher = torch.randn(2, 8, 8, 8)
    settings: dict[str, Any] = {
        "negatives": [(i + 1) % layers for i in range(layers)],
        "representation": representation,
        "backend": "triton",
    }
    upstream = torch.rand(layers)
    # Makes the tables of this size.
    torch.autograd.grad(framer_loss(students, teacher, **settings).loss, students, upstream)
    GridExecutor.__call__ = counted
    try:
        with profile(activities=[ProfilerActivity.CPU]) as record:
            out = framer_loss(students, teacher, **settings)
            torch.autograd.grad(out.loss, students, upstream)
    finally:
        GridExecutor.__call__ = execute
    operations = []
    for event in record.events():
        parents = []
        parent = event.cpu_parent
        while parent is not None:
            parents.append(parent.name)
            parent = parent.cpu_parent
        name = event.name.removeprefix("aten::")
        inside = any(parent == "kernel" or parent.startswith("aten::") for parent in parents)
        if not event.name.startswith("aten::") or inside or name in NO_LAUNCH:
            continue
        # Where nothing is to be done, this calls nothing.
        if name == "to" and not event.cpu_children:
            continue
        operations.append(name)
    return kernels, operations


if __name__ == "__main__":
    for representation in ("complex", "magnitude"):
        for layers in (3, 9):
            print(json.dumps([layers, representation, *launches(layers, representation)]))
