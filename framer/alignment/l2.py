"""L2: the objective that FRAMER's ablation (arXiv 2512.01390, Table 2) compares with."""

from __future__ import annotations

import torch
from torch import Tensor

from framer.alignment.base import Alignment, AlignmentMaps
from framer.alignment.distances import squared_distance_loss


class L2(Alignment):
    """Every student's mean squared distance to the teacher: ``mean((x_i - sg(t))^2)`` of the maps as they are.

    Students, teacher and feature space are those that FRAMER would take.
    """

    def losses(self, maps: AlignmentMaps) -> Tensor:
        """See :class:`Alignment`."""
        assert maps.teacher is not None
        return torch.stack([squared_distance_loss(student, maps.teacher) for student in maps.students])
