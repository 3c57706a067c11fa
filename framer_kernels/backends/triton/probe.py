"""Whether kernels compile, launch and compute on a device: an import alone shows nothing of compiler and driver."""
# mypy: ignore-errors
# ruff: noqa: N803

import torch
import triton
import triton.language as tl

from framer_kernels.backends.triton.addresses import device_guard
from framer_kernels.backends.triton.configs import COMPILER

_SIZE = 16


@triton.jit
def framer_probe_kernel(p_in, p_out, STEPS, SIZE: tl.constexpr):
    """``STEPS`` times the product of a matrix ``[SIZE, SIZE]`` with itself, by what the other kernels are made of."""
    o_x = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    b_sum = tl.zeros((SIZE, SIZE), tl.float32)
    for _ in tl.range(STEPS, disable_licm=True):
        b_x = tl.load(p_in + o_x)
        b_sum = tl.dot(b_x, b_x, b_sum)
    tl.store(p_out + o_x, b_sum)


def run(device: torch.device) -> None:
    """Compiles and launches a kernel, and waits for its result.

    Args:
        device: Where.

    Raises:
        RuntimeError: The result is wrong. What Triton raises comes as it is.
    """
    numbers = torch.arange(_SIZE * _SIZE, device=device).view(_SIZE, _SIZE).remainder(7)
    found = torch.zeros(_SIZE, _SIZE, device=device)
    with device_guard(device):
        framer_probe_kernel[(1,)](numbers.to(torch.bfloat16), found, 2, SIZE=_SIZE, **COMPILER)
    # Whole numbers, exact in bf16 and in float32.
    right = 2 * (numbers[:, :, None] * numbers[None]).sum(dim=1)
    if not torch.equal(found, right.float()):
        raise RuntimeError(f"a product of matrices is {found[0, :4].tolist()}, not {right[0, :4].tolist()}")
