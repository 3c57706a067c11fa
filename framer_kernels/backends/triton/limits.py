"""What the kernels can compute."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from framer_kernels.backends.triton.configs import LARGEST_SIDE

PRECISIONS = ("bf16x3", "tf32", "ieee")
"""Arithmetic of matrix products: three passes in bf16, one in tf32, or fp32 without matrix units."""

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_GRID_LIMIT = 65535
"""Programs along the second and third axis of a grid."""


def supports(teacher: Tensor) -> str | None:
    """Why this is not for this backend; None if it is.

    Args:
        teacher: One of the maps, which are all alike.
    """
    if teacher.dtype not in DTYPES:
        return f"the Triton kernels take float32, bfloat16 and float16 features, not {teacher.dtype}"
    batch, channels, height, width = teacher.shape
    if max(height, width) > LARGEST_SIDE:
        return f"the Triton kernels take maps of up to {LARGEST_SIDE} x {LARGEST_SIDE}, not {height} x {width}"
    if batch > _GRID_LIMIT:
        return f"the Triton kernels take up to {_GRID_LIMIT} samples, not {batch}"
    if channels * height * width >= 2**31:
        return f"the Triton kernels take samples of fewer than 2**31 numbers, not {channels} x {height} x {width}"
    return None


def check(teacher: Tensor, precision: str) -> None:
    """Refuses what the kernels cannot compute.

    Args:
        teacher: One of the maps, which are all alike.
        precision: Of the matrix products.

    Raises:
        ValueError: `supports` has something against the maps, or the precision is unknown.
    """
    reason = supports(teacher)
    if reason is None and precision not in PRECISIONS:
        reason = f"the Triton kernels know the precisions {list(PRECISIONS)}, not {precision!r}"
    if reason is not None:
        raise ValueError(reason)
