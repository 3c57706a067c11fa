"""Compiles the kernels for GPUs that are not there and says what they would take; the tests start it as a process.

The host code runs on CPU tensors under a driver that claims to be the target, and every launch becomes a compilation
with the launch's own specialisation. Prints one line of JSON for every kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from framer_kernels.backends import triton as backend
from framer_kernels.bands import BandSplit
from framer_kernels.products import GradientCoefficients
from framer_kernels.types import BandKind, Representation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FakeDriver:
    """As much of a driver as compiling takes."""

    def __init__(self, target: str) -> None:
        self.target = GPUTarget("cuda", int(target), 32) if target.isdigit() else GPUTarget("hip", target, 64)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        # Compiled kernels are kept by device: each target is one.
        return hash(self.target.arch) % 1000

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def is_active(self) -> bool:
        return True


def resources(compiled: Any) -> dict[str, Any]:
    """Spilled bytes, shared memory, and the widest global load in bits."""
    shared = int(compiled.metadata.shared)
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        spills = sum(int(n) for n in re.findall(r"\.vgpr_spill_count:\s*(\d+)", text))
        widths = [32 * int(n or 1) for n in re.findall(r"(?:buffer|global)_load_dword(?:x(\d))?", text)]
        return {"spills": spills, "shared": shared, "widest_load": max(widths, default=0)}
    ptx = compiled.asm["ptx"]
    # The cubin itself: ptxas called once more with other options would spill elsewhere.
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        done = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True)
    stacks = [int(n) for n in re.findall(r"STACK:(\d+)", done.stdout)]
    if not stacks:
        raise RuntimeError(f"cuobjdump says nothing of the stack: {done.stdout}")
    spills = sum(stacks)
    loads = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.[bufs](\d+)", ptx)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global[\w.:]* \[[^]]*\], \[[^]]*\], (0x)?(\d+)", ptx)
    widths = [int(n or 1) * int(bits) for n, bits in loads] + [8 * int(n, 16 if x else 10) for x, n in copies]
    return {"spills": spills, "shared": shared, "widest_load": max(widths, default=0)}


def run(
    shape: tuple[int, int, int, int],
    dtype: str,
    layout: str,
    precision: str,
    kind: BandKind = "radial",
    representation: Representation = "complex",
) -> None:
    """Everything that the backend launches for maps of a kind."""

    def make() -> Tensor:
        x = torch.zeros(shape, dtype=DTYPES[dtype])
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if layout == "tokens" else x

    maps, teacher, size = [make(), make()], make(), shape[0]
    options: dict[str, Any] = {
        "bands": BandSplit(kind, 0.25), "representation": representation, "precision": precision,
    }  # fmt: skip
    negatives = {"negatives": [1, 0], "shared_negatives": False}
    backend.measure(maps, teacher, **negatives, **options)
    pairs = [torch.zeros(2, size) for _ in range(4)]
    coefficients = GradientCoefficients(*pairs, torch.zeros(2, size, size), torch.zeros(2, size, 1))
    found = backend.gradients(
        maps, teacher, coefficients, torch.zeros(2, size), **negatives, needed=[True, True], **options
    )
    backend.cross_products(maps, teacher, teacher, teacher, **options)
    gradients = [x for x in found if x is not None]
    backend.add_cross_gradients(gradients, torch.zeros(2, size, size), maps, teacher, teacher, teacher, **options)


def main(target: str, cases: list[list[Any]]) -> None:
    triton.runtime.driver.set_active(FakeDriver(target))
    if not target.isdigit():
        torch.version.hip = "0"
    name = ""

    def launcher(kernel: Any, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            compiled = kernel.warmup(*args, grid=grid, **options)
            line = {"target": target, "case": name, "kernel": kernel.fn.__name__, **resources(compiled)}
            print(json.dumps(line), flush=True)

        return launch

    triton.runtime.jit.KernelInterface.__getitem__ = launcher
    for shape, *rest in cases:
        name = "-".join(["x".join(map(str, shape)), *rest])
        run(tuple(shape), *rest)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
