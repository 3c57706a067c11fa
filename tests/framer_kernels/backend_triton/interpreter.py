"""Makes Triton's interpreter compute as a GPU does: bf16 by value, matrix products of tf32 cut to its 10 bits.

The interpreter keeps bf16 as bit patterns, multiplies the patterns, truncates where hardware rounds, and takes tf32 for
float32. The kernels do no arithmetic in bf16 but conversions and matrix products, so these are all that is mended.
Import it after ``TRITON_INTERPRET=1`` is set and before any kernel is launched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

Array = NDArray[Any]


def bf16_to_float(bits: Array) -> Array:
    """Values of bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float_to_bf16(values: Array) -> Array:
    """Bit patterns of the nearest bf16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def cut_to_tf32(values: Array) -> Array:
    """What matrix units see of float32 registers."""
    return (np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


_cast = InterpreterBuilder.cast_impl
_fp_to_fp = InterpreterBuilder.create_fp_to_fp


def _cast_impl(self: Any, source: Any, target: Any) -> Any:
    of, to = source.dtype.scalar, target.scalar
    if of == tl.bfloat16 and to != tl.bfloat16:
        return _cast(self, TensorHandle(bf16_to_float(source.data), tl.float32), target)
    if to == tl.bfloat16 and of != tl.bfloat16:
        return TensorHandle(float_to_bf16(source.data.astype(np.float32)), tl.bfloat16)
    return _cast(self, source, target)


def _create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
    if tl.bfloat16 in (source.dtype.scalar, target.scalar):
        return _cast_impl(self, source, target)
    return _fp_to_fp(self, source, target, rounding)


def _create_dot(self: Any, a: Any, b: Any, total: Any, precision: Any, imprecise: int) -> Any:
    factors = [bf16_to_float(x.data) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b)]
    if a.dtype.scalar == tl.float32 and str(precision).rsplit(".", maxsplit=1)[-1].upper() == "TF32":
        factors = [cut_to_tf32(x) for x in factors]
    return TensorHandle(np.matmul(*factors, dtype=total.data.dtype) + total.data, total.dtype.scalar)


InterpreterBuilder.cast_impl = _cast_impl
InterpreterBuilder.create_fp_to_fp = _create_fp_to_fp
InterpreterBuilder.create_dot = _create_dot
interpreter.interpreter_builder  # noqa: B018 (fails here, not in a kernel, if Triton moves it)
