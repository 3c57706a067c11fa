"""The in-batch negatives of a distributed run: the samples of every rank of a process group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class GlobalBatch:
    """Where this rank's samples stand among those of its process group.

    Attributes:
        group: The process group, or None for this process alone.
        sizes: Number of samples on every rank of the group, in rank order.
        rank: This process's rank in the group.
    """

    group: ProcessGroup | None
    sizes: tuple[int, ...]
    rank: int

    @classmethod
    def of(cls, features: Tensor, group: ProcessGroup | None) -> GlobalBatch:
        """Learn the batch sizes of all ranks. With a group the call is collective and waits for the device.

        Args:
            features: ``[B, C, H, W]``, this rank's teacher. B may differ from rank to rank.
            group: The process group, or None.

        Raises:
            TypeError: ``group`` is no process group, or not one that this process belongs to.
            ValueError: C, H or W differ between ranks. Raised on all of them, so that none is left waiting.
        """
        if group is None:
            return cls(None, (features.shape[0],), 0)
        if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"group must be a torch.distributed.ProcessGroup that this process belongs to, or None, got {group!r}"
            )
        shape = torch.tensor(features.shape, dtype=torch.int64, device=features.device)
        gathered = [torch.empty_like(shape) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, shape, group=group)
        shapes: list[list[int]] = torch.stack(gathered).tolist()
        if any(other[1:] != shapes[0][1:] for other in shapes):
            raise ValueError(
                f"features must have the same C, H and W on every rank of the group, got [B, C, H, W] by rank: {shapes}"
            )
        return cls(group, tuple(other[0] for other in shapes), dist.get_rank(group))

    @property
    def first(self) -> int:
        """Index in the global batch of this rank's first sample."""
        return sum(self.sizes[: self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all ranks in rank order, detached. With a group this is a collective call.

        Args:
            rows: ``[B, D]``, one row a sample of this rank.

        Returns:
            ``[sum(sizes), D]``; this rank's rows start at `first`.
        """
        rows = rows.detach()
        if self.group is None or len(self.sizes) == 1:
            return rows
        # NCCL gathers equal shapes only.
        longest = max(self.sizes)
        padded = rows.new_zeros(longest, rows.shape[1])
        padded[: rows.shape[0]] = rows
        gathered = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(gathered, padded, group=self.group)
        return torch.cat([part[:size] for part, size in zip(gathered, self.sizes, strict=True)])
