"""Whether kernels compile, launch and compute on a device: an import alone shows nothing of compiler and driver."""
# mypy: ignore-errors
# ruff: noqa: N803

import torch
import triton
import triton.language as tl

from framer_kernels.backends.triton.addresses import device_guard
from framer_kernels.backends.triton.configs import COMPILER

_SIZE = 64


@triton.jit
def framer_probe_kernel(p_in, p_out, SIZE: tl.constexpr):
    """Doubles numbers and adds one."""
    o_x = tl.arange(0, SIZE)
    tl.store(p_out + o_x, 2 * tl.load(p_in + o_x) + 1)


def run(device: torch.device) -> None:
    """Compiles and launches a kernel, and waits for its result.

    Args:
        device: Where.

    Raises:
        RuntimeError: The result is wrong. What Triton raises comes as it is.
    """
    numbers = torch.arange(_SIZE, dtype=torch.int32, device=device)
    found = torch.zeros_like(numbers)
    with device_guard(device):
        framer_probe_kernel[(1,)](numbers, found, SIZE=_SIZE, **COMPILER)
    if not torch.equal(found, 2 * numbers + 1):
        raise RuntimeError(f"a kernel that doubles and adds one made {found[:4].tolist()} of {numbers[:4].tolist()}")
