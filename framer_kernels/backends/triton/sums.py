"""The second pass of every sum: the kernel that adds up what the programs of other kernels left, and its launch."""
# mypy: ignore-errors
# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor

from framer_kernels.backends.triton.configs import COMPILER, SumConfig


@triton.jit
def sum_parts(p_out, p_in, size, parts, i_block, BR: tl.constexpr, BK: tl.constexpr):
    """BR of the sums over the parts of an array ``[parts, size]``."""
    o_row = i_block * BR + tl.arange(0, BR)
    o_part = tl.arange(0, BK)[:, None]
    b_sum = tl.zeros((BK, BR), tl.float32)
    for i_part in range(0, parts, BK):
        m_in = (i_part + o_part < parts) & (o_row < size)[None, :]
        b_sum += tl.load(p_in + (i_part + o_part).to(tl.int64) * size + o_row[None, :], mask=m_in, other=0.0)
    tl.store(p_out + o_row, tl.sum(b_sum, axis=0), mask=o_row < size)


@triton.jit
def framer_loss_sums_fwd_kernel(
    p_out, p_1, p_2, p_3, SIZE_1, PARTS_1, SIZE_2, PARTS_2, SIZE_3, PARTS_3, BR: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """Sums over the parts of three arrays, one result after the other."""
    i_block = tl.program_id(0)
    first = tl.cdiv(SIZE_1, BR)
    second = first + tl.cdiv(SIZE_2, BR)
    if i_block < first:
        sum_parts(p_out, p_1, SIZE_1, PARTS_1, i_block, BR, BK)
    elif i_block < second:
        sum_parts(p_out + SIZE_1, p_2, SIZE_2, PARTS_2, i_block - first, BR, BK)
    else:
        sum_parts(p_out + SIZE_1 + SIZE_2, p_3, SIZE_3, PARTS_3, i_block - second, BR, BK)


def sums_of_parts(*arrays: Tensor) -> Tensor:
    """Sums of up to three arrays ``[parts, size]`` over their parts, one after the other."""
    config = SumConfig.choose()
    nothing = arrays[0][:, :0]
    first, second, third = (*arrays, nothing, nothing)[:3]
    sizes = [x.shape[1] for x in (first, second, third)]
    out = torch.empty(sum(sizes), dtype=torch.float32, device=first.device)
    blocks = sum(triton.cdiv(size, config.results) for size in sizes)
    framer_loss_sums_fwd_kernel[(blocks,)](
        out, first, second, third, *(n for x in (first, second, third) for n in (x.shape[1], x.shape[0])),
        BR=config.results, BK=config.parts, num_warps=config.num_warps, **COMPILER,
    )  # fmt: skip
    return out
