"""What a backend measures of feature maps, and what it needs to know to give them their gradient.

The loss depends on the maps through few numbers: energies, squared norms and inner products of their band vectors
``u_b``. A backend measures them (`BandProducts`), `framer_kernels.objective` turns them into the loss and its
derivative with respect to each (`GradientCoefficients`), and the backend turns these into gradients of the maps,
reading the maps once more. Nothing else need be kept between forward and backward.

M maps of B samples each; the first N of them are the students. G samples in all ranks' batches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BandProducts(NamedTuple):
    """Numbers measured on one rank: float64 for float64 features, float32 for others.

    Inner products are those of the full spectrum, as in ``docs/method.md``: ``<u_b(x), u_b(y)>`` with ``u_b`` neither
    halved by symmetry nor normalised, ``t`` the teacher and ``x_j`` the negative.
    """

    energy: Tensor
    """``E_b`` of each map, LF then HF: ``[2, M, B]``."""
    norm_squared: Tensor
    """``|u_b|^2`` of each map: ``[2, M, B]``."""
    teacher_energy: Tensor
    """``[2, B]``."""
    teacher_norm_squared: Tensor
    """``[2, B]``."""
    teacher_dot_lf: Tensor
    """``<u_LF(x_i[b]), u_LF(t[b])>``: ``[N, B]``."""
    teacher_dot_hf: Tensor
    """``<u_HF(x_i[b]), u_HF(t[b'])>``: ``[N, B, B]``."""
    negative_dot_lf: Tensor
    """``<u_LF(x_i[b]), u_LF(x_j[b])>``: ``[N, B]``."""
    negative_dot_hf: Tensor
    """``<u_HF(x_i[b]), u_HF(x_j[b'])>``: ``[N, B, B]`` with shared negatives, else ``b' = b`` alone, ``[N, B, 1]``."""


class GradientCoefficients(NamedTuple):
    """Derivatives of each student's loss, by which its gradient is a sum of band vectors.

    The gradient with respect to ``u_LF(x_i[b])`` is
    ``teacher_lf u_LF(t[b]) + negative_lf u_LF(x_j[b]) + self_lf u_LF(x_i[b])``, that with respect to
    ``u_HF(x_i[b])`` the sum over ``b'`` of ``teacher_hf[b'] u_HF(t[b'])`` and ``negative_hf[b'] u_HF(x_j[b'])``, plus
    ``self_hf u_HF(x_i[b])``.
    """

    teacher_lf: Tensor
    """``[N, B]``."""
    negative_lf: Tensor
    """``[N, B]``."""
    self_lf: Tensor
    """``[N, B]``."""
    self_hf: Tensor
    """``[N, B]``."""
    teacher_hf: Tensor
    """``[N, B, G]``, all ranks' samples in rank order; ``[N, B, 0]`` where none has a part in it."""
    negative_hf: Tensor
    """``[N, B, G]`` with shared negatives, else ``[N, B, 1]``."""

    @classmethod
    def of(cls, packed: Tensor, *, shared_negatives: bool) -> GradientCoefficients:
        """The coefficients as views of one array.

        Args:
            packed: ``[N, B, 4 + G + (G or 1)]``: of each sample the fields in their order.
            shared_negatives: Whether ``negative_hf`` has G numbers.
        """
        samples = (packed.shape[2] - 4) // 2 if shared_negatives else packed.shape[2] - 5
        pairs, teacher_hf, negative_hf = packed.split_with_sizes([4, samples, packed.shape[2] - 4 - samples], dim=2)
        teacher_lf, negative_lf, self_lf, self_hf = pairs.unbind(dim=2)
        return cls(teacher_lf, negative_lf, self_lf, self_hf, teacher_hf, negative_hf)

    def packed(self) -> Tensor:
        """One array that holds all of them, as `of` takes it."""
        return torch.cat([torch.stack(self[:4], dim=2), *self[4:]], dim=2)

    def times(self, factors: Tensor) -> GradientCoefficients:
        """Every coefficient times its sample's factor.

        Args:
            factors: ``[N, B]``, any strides.
        """
        pairs = [field * factors for field in self[:4]]
        return GradientCoefficients(*pairs, *(field * factors[..., None] for field in self[4:]))
