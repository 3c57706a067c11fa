"""The real DFT of real signals, packed: n real numbers in, n real coefficients out, nothing computed twice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedAxis:
    """How the coefficients of one axis of length n are ordered.

    First the ``edges``, frequencies that are their own conjugates (0, and n/2 for even n), then the cosines of the
    ``interior`` frequencies 1, 2, ..., then their sines: ``edges + 2 * interior = n``.

    Attributes:
        length: n, at least 1.
    """

    length: int

    @property
    def edges(self) -> int:
        """Number of self-conjugate frequencies."""
        return 1 if self.length % 2 or self.length == 1 else 2

    @property
    def interior(self) -> int:
        """Number of frequencies that stand for their conjugates too."""
        return (self.length - self.edges) // 2

    @property
    def frequencies(self) -> list[int]:
        """Frequency of every row, as a whole number of periods."""
        edges = [0, self.length // 2][: self.edges]
        interior = list(range(1, self.interior + 1))
        return edges + interior + interior

    def basis(self, *, edge_scale: float = 1.0, interior_scale: float = 1.0) -> Tensor:
        """The transform as a matrix, ``[n, n]`` float64 on the CPU: rows ``cos(2 pi k x / n)``, then ``sin``.

        With ``interior_scale`` sqrt(2) times ``edge_scale`` its rows are orthogonal and of equal norm, so that inner
        products of coefficients are n times those of signals.

        Args:
            edge_scale: Factor of the edge rows.
            interior_scale: Factor of the interior rows.
        """
        x = torch.arange(self.length, dtype=torch.float64, device="cpu")
        k = torch.tensor(self.frequencies, dtype=torch.float64, device="cpu")
        # Whole periods are taken out before the product leaves the exact integers.
        angle = 2 * torch.pi * torch.remainder(k[:, None] * x, self.length) / self.length
        rows = self.edges + self.interior
        basis = torch.cat([angle[:rows].cos(), angle[rows:].sin()])
        basis[: self.edges] *= edge_scale
        basis[self.edges :] *= interior_scale
        return basis
