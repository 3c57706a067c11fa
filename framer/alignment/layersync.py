"""LayerSync (arXiv 2510.12581): an early layer turns its tokens towards a later one's."""

from __future__ import annotations

import torch
from torch import Tensor

from framer.alignment.base import Alignment, AlignmentMaps
from framer.alignment.distances import token_cosine_loss


class LayerSync(Alignment):
    """``-cos(x_i[token], sg(t[token]))``, mean over tokens and samples, without a projector."""

    def losses(self, maps: AlignmentMaps) -> Tensor:
        """See :class:`Alignment`."""
        assert maps.teacher is not None
        return torch.stack([token_cosine_loss(student, maps.teacher) for student in maps.students])
