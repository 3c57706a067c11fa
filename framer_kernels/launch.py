"""What every launch of a Triton kernel needs: the right device, addresses of many maps in one launch, large offsets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

STRIDES = 4
"""Strides of a map ``[B, C, H, W]``; a row of a table is its address and these."""


def device_guard(device: torch.device) -> AbstractContextManager[object]:
    """Context in which kernels launch on the given device."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    return nullcontext()


def upload(parts: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """Lists of whole numbers as int64 tensors on the device, in one copy that nothing waits for."""
    numbers: list[int] = []
    starts: list[int] = []
    for part in parts:
        # Every part starts at a multiple of 16 bytes: kernels are specialised by that.
        starts.append(len(numbers) + len(numbers) % 2)
        numbers += [0] * (len(numbers) % 2)
        numbers += part
    host = torch.tensor(numbers, dtype=torch.int64)
    tensor = host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
    return [tensor[start : start + len(part)] for start, part in zip(starts, parts, strict=True)]


def span(x: Tensor) -> int:
    """Largest offset within one sample of a map, in elements."""
    return sum((size - 1) * abs(stride) for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))


@dataclass(frozen=True)
class MapTable:
    """Maps as kernels see them.

    Attributes:
        rows: Address and strides of every map, one after another.
        strides: Those of the first map, which are everyone's if ``uniform``.
        uniform: Whether all have the same strides: then these are arguments, for which kernels are specialised.
        aligned: Whether all addresses are multiples of 16 bytes.
    """

    rows: tuple[int, ...]
    strides: tuple[int, ...]
    uniform: bool
    aligned: bool

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> MapTable:
        """Table of maps ``[B, C, H, W]``, at least one."""
        rows = [number for x in maps for number in (x.data_ptr(), *x.stride())]
        strides = tuple(maps[0].stride())
        return cls(
            rows=tuple(rows),
            strides=strides,
            uniform=all(tuple(x.stride()) == strides for x in maps),
            aligned=all(x.data_ptr() % 16 == 0 for x in maps),
        )
