"""Dispersive loss (arXiv 2506.09027): features of different images move apart; nothing teaches."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from framer.alignment.base import Alignment, AlignmentMaps
from framer_kernels.distributed import GlobalBatch
from framer_kernels.precision import autocast_disabled


class Dispersive(Alignment):
    """``log mean_{b, b'} exp(-D(x_i[b], x_i[b']) / tau)``, D the mean squared difference of two samples' maps.

    The mean is over all pairs, a sample with itself included, of all ranks: the loss is 0 where all samples are alike,
    and lower the further apart they are.

    Args:
        temperature: tau.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def losses(self, maps: AlignmentMaps) -> Tensor:
        """See :class:`Alignment`."""
        return torch.stack([dispersive_loss(x, self._temperature, maps.group) for x in maps.students])


def dispersive_loss(x: Tensor, temperature: float, group: dist.ProcessGroup | None = None) -> Tensor:
    """The loss of one layer, a scalar of float32 at least.

    Over ranks, every rank gives the loss of all samples, with a gradient such that the mean over ranks of the
    parameters' gradients, which data parallelism takes, is that of one process with all samples.

    Args:
        x: ``[B, C, h, w]``, floating.
        temperature: Above 0.
        group: Processes whose samples count too; with one, the call is collective.
    """
    before = after = x.new_empty(0, x[0].numel())
    ranks = 1
    if group is not None:
        rows = x.detach().flatten(1)
        batch = GlobalBatch(group, _batch_sizes(len(rows), rows.device, group), dist.get_rank(group))
        everyone = batch.gather(rows)
        before, after, ranks = everyone[: batch.first], everyone[batch.first + len(rows) :], len(batch.sizes)
    # Computed once more in the backward pass, so that nothing of the features' size is kept beside them.
    loss: Tensor = checkpoint(_log_mean, x, before, after, temperature, use_reentrant=False, preserve_rng_state=False)
    return ranks * loss - (ranks - 1) * loss.detach() if ranks > 1 else loss


def _log_mean(x: Tensor, before: Tensor, after: Tensor, temperature: float) -> Tensor:
    with autocast_disabled(x.device):
        rows = torch.cat([before, x.flatten(1), after]).to(torch.promote_types(x.dtype, torch.float32))
        # Distances do not change with the mean taken off; with it, those of like samples would lose their digits.
        rows = rows - rows.detach().mean(dim=0)
        norms = rows.square().sum(dim=1)
        squares = (norms[:, None] + norms - 2 * (rows @ rows.T)).clamp(min=0)
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        distances = (squares / rows.shape[1]).masked_fill(itself, 0)
        return torch.logsumexp(-distances.flatten() / temperature, dim=0) - math.log(distances.numel())


def _batch_sizes(own: int, device: torch.device, group: dist.ProcessGroup) -> tuple[int, ...]:
    sizes = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([own], device=device), group=group)
    return tuple(int(size) for size in torch.cat(sizes).tolist())
