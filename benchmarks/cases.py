"""Features of a given size, and every implementation of the loss behind one signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import compiled_rfft2, eager_rfft2, released_formula
from framer_kernels import Backend, BandSplit, Representation, framer_loss

LossFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class LossCase:
    """What a loss is computed of.

    Attributes:
        layers: Number of students N.
        batch: B.
        channels: C.
        height: H.
        width: W.
        representation: What the cosine compares.
        dtype: Of the features.
        device: Of the features.
    """

    layers: int = 8
    batch: int = 4
    channels: int = 384
    height: int = 32
    width: int = 32
    representation: Representation = "magnitude"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def with_size(self, size: int) -> LossCase:
        """The same with square maps of another size."""
        return replace(self, height=size, width=size)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.height, self.width

    @property
    def feature_bytes(self) -> int:
        """Bytes of the students and the teacher together."""
        return (self.layers + 1) * self.batch * self.channels * self.height * self.width * self.dtype.itemsize

    def features(self) -> tuple[list[Tensor], Tensor]:
        """Students, which resemble the teacher a little, and the teacher."""
        generator = torch.Generator().manual_seed(0)
        teacher = torch.randn(self.shape, generator=generator)
        students = [0.6 * teacher + torch.randn(self.shape, generator=generator) for _ in range(self.layers)]
        teacher, *students = (x.to(self.device, self.dtype) for x in (teacher, *students))
        return [x.requires_grad_() for x in students], teacher

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of a `LossFunction` beside the features."""
        return {
            "negatives": [(i + 1) % self.layers for i in range(self.layers)],
            "bands": BandSplit.radial(0.25),
            "representation": self.representation,
        }


def framer_kernels_loss(backend: Backend) -> LossFunction:
    """`framer_loss` as a `LossFunction`."""

    def loss(students: list[Tensor], teacher: Tensor, **settings: Any) -> Tensor:
        return framer_loss(students, teacher, backend=backend, **settings).loss

    return loss


def implementations(*, compiled: bool = True) -> dict[str, LossFunction]:
    """Every implementation under the name it has in the tables; ours first.

    Args:
        compiled: Whether to include the compiled peer, which compiles for every size anew.
    """
    found = {
        "portable": framer_kernels_loss("portable"),
        "released formula": released_formula,
        "eager rfft2": eager_rfft2,
    }
    if compiled:
        found["compiled rfft2"] = compiled_rfft2()
    return found


def forward_and_backward(loss: LossFunction, case: LossCase) -> Callable[[], None]:
    """A training step's share of the loss: forward, backward, gradients dropped."""
    students, teacher = case.features()
    return partial(_step, loss, students, teacher, case.settings)


def _step(loss: LossFunction, students: list[Tensor], teacher: Tensor, settings: dict[str, Any]) -> None:
    loss(students, teacher, **settings).sum().backward()
    for x in students:
        x.grad = None
