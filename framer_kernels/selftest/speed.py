"""Times of the backends, of the compiled ``rfft2`` form, and of a plain copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from framer_kernels.bands import DEFAULT_BANDS
from framer_kernels.ops.framer_loss.api import framer_loss
from framer_kernels.selftest.rfft2 import rfft2_loss
from framer_kernels.types import Backend, Precision

COPIED_BYTES = 1 << 28


@dataclass(frozen=True)
class Size:
    """What is timed."""

    layers: int
    batch: int
    channels: int
    side: int

    @classmethod
    def for_device(cls, device: torch.device, *, quick: bool) -> Size:
        """One that takes a second or so."""
        if quick:
            return cls(layers=3, batch=2, channels=16, side=16)
        return cls(23, 16, 1536, 32) if device.type == "cuda" else cls(4, 4, 192, 32)

    def __str__(self) -> str:
        return f"{self.layers} students of [{self.batch}, {self.channels}, {self.side}, {self.side}]"

    def floor_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that any implementation moves: students twice and the teacher once read, gradients written."""
        map_bytes = self.batch * self.channels * self.side**2 * dtype.itemsize
        return (3 * self.layers + 1) * map_bytes

    def features(self, dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Students and teacher of unrelated noise."""
        generator = torch.Generator(device).manual_seed(0)
        shape = (self.batch, self.side, self.side, self.channels)
        made = [torch.randn(shape, generator=generator, device=device) for _ in range(self.layers + 1)]
        # Laid out as a transformer's tokens are.
        *students, teacher = (x.to(dtype).permute(0, 3, 1, 2) for x in made)
        return [x.requires_grad_() for x in students], teacher


Loss = Callable[[list[Tensor], Tensor, dict[str, Any]], Tensor]


def backend_loss(backend: Backend, precision: Precision) -> Loss:
    """A backend's loss."""

    def loss(students: list[Tensor], teacher: Tensor, settings: dict[str, Any]) -> Tensor:
        return framer_loss(students, teacher, backend=backend, precision=precision, **settings).loss

    return loss


def compiled_loss() -> Loss:
    """The compiled ``rfft2`` form."""
    compiled = torch.compile(rfft2_loss, dynamic=False)

    def loss(students: list[Tensor], teacher: Tensor, settings: dict[str, Any]) -> Tensor:
        result: Tensor = compiled(students, teacher, **settings)
        return result

    return loss


def seconds(loss: Loss, size: Size, dtype: torch.dtype, device: torch.device, *, rounds: int) -> float:
    """Median time of forward and backward, ``complex`` representation, after one round that does not count."""
    students, teacher = size.features(dtype, device)
    settings = {
        "negatives": [(i + 1) % size.layers for i in range(size.layers)],
        "bands": DEFAULT_BANDS,
        "representation": "complex",
    }

    def step() -> None:
        torch.autograd.grad(loss(students, teacher, settings).sum(), students)

    return _median(step, device, rounds)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / _median(lambda: target.copy_(source), device, rounds=20)


def _median(step: Callable[[], object], device: torch.device, rounds: int) -> float:
    step()
    times = []
    for _ in range(rounds):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
