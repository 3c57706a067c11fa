"""SRA (arXiv 2505.02831): an early layer learns a later one's features of the averaged weights at less noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from framer.alignment.base import Alignment, AlignmentMaps
from framer.alignment.distances import smooth_l1_loss
from framer.alignment.projectors import Projectors, resized
from framer.seeding import generator


class Sra(Alignment):
    """``smooth_l1(projector(x_i), sg(t))``; t is of the averaged weights, which saw the same noise at a lower level.

    Args:
        projectors: Of the students.
        numbers: The students' numbers.
    """

    def __init__(self, projectors: Projectors, numbers: Sequence[int]) -> None:
        self._projectors = projectors
        self._numbers = tuple(numbers)

    def losses(self, maps: AlignmentMaps) -> Tensor:
        """See :class:`Alignment`."""
        teacher = maps.teacher
        assert teacher is not None
        with maps.autocast():
            projected = self._projectors.project(self._numbers, maps.students)
        return torch.stack([smooth_l1_loss(resized(x, teacher), teacher) for x in projected])


def teacher_sigmas(sigmas: Tensor, indices: Sequence[int], seed: int, *, gap: float) -> Tensor:
    """Noise levels of the teacher's inputs: each lower by its own uniform draw from 0 to ``gap``, and no lower than 0.

    Args:
        sigmas: The students' noise levels ``[B]``.
        indices: The samples' indices in the training stream, length B; the draws depend on them and ``seed`` alone.
        seed: The run's seed.
        gap: Largest difference.

    Returns:
        ``[B]``, as the students'.
    """
    draws = [torch.rand((), generator=generator(seed, "teacher noise", index)) for index in indices]
    return (sigmas - gap * torch.stack(draws).to(sigmas)).clamp(min=0)
