"""What a launch over many maps needs: the right device, and their addresses and strides in device memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from framer_kernels.products import GradientCoefficients

FIELDS = 5
"""Whole numbers in a row of a table: address and strides."""


def device_guard(device: torch.device) -> AbstractContextManager[object]:
    """Context in which kernels launch on the given device."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    return nullcontext()


def upload(values: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers as an int64 tensor on the device, without waiting for it.

    Raises:
        RuntimeError: A CUDA graph is being captured, which would read this memory again later.
    """
    host = torch.tensor(list(values), dtype=torch.int64, device="cpu")
    if device.type != "cuda":
        return host.to(device)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "addresses of tensors are read at every call: the operators cannot be captured in a CUDA graph"
        )
    return host.pin_memory().to(device, non_blocking=True)


def parts(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Consecutive parts of a vector, as views."""
    return tuple(x.split(list(sizes)))  # type: ignore[no-untyped-call]


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a map are its contiguous axis."""
    return x.stride(1) == 1 and x.shape[1] > 1


@dataclass(frozen=True)
class MapTable:
    """Maps as kernels see them.

    Attributes:
        rows: Address and strides of every map, one after another.
        strides: Those of the first map, which are everyone's if ``uniform``.
        uniform: Whether strides are passed as arguments, known to be multiples of 16 where they are: all are the same,
            and offsets within a sample fit 32 bits. Otherwise kernels read them from the table in 64 bits.
        aligned: Whether all addresses are multiples of 16 bytes.
    """

    rows: tuple[int, ...]
    strides: tuple[int, ...]
    uniform: bool
    aligned: bool

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> MapTable:
        """Table of maps ``[B, C, H, W]``, at least one."""
        strides = tuple(maps[0].stride())
        span = sum((size - 1) * stride for size, stride in zip(maps[0].shape[1:], strides[1:], strict=True))
        return cls(
            rows=tuple(number for x in maps for number in (x.data_ptr(), *x.stride())),
            strides=strides,
            uniform=all(tuple(x.stride()) == strides for x in maps) and span < 2**31,
            aligned=all(x.data_ptr() % 16 == 0 for x in maps),
        )


def alike(coefficients: GradientCoefficients) -> tuple[list[Tensor], tuple[int, int]]:
    """The coefficients as fp32 with the strides of layers and samples that all of them have.

    Those that the objective's kernel wrote are parts of one array, and no copy is made.
    """
    fields = [field[..., None] if field.dim() == 2 else field for field in coefficients]
    strides = fields[0].stride()[:2]
    if any(
        x.dtype != torch.float32 or x.stride()[:2] != strides or (x.shape[2] > 1 and x.stride(2) != 1) for x in fields
    ):
        joined = torch.cat([field.float() for field in fields], dim=2)
        fields, strides = list(joined.split_with_sizes([x.shape[2] for x in fields], dim=2)), joined.stride()[:2]
    return fields, (strides[0], strides[1])
