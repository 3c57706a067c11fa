"""Dispersive loss over ranks: loss and gradient of one process with all samples."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from framer.alignment.dispersive import dispersive_loss

SIZES = (3, 1)


def samples() -> torch.Tensor:
    return torch.randn(sum(SIZES), 2, 4, 4, generator=torch.Generator().manual_seed(0))


def layer() -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(2, 3, 1)


def compute(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(SIZES))
    model = layer()
    own = samples()[sum(SIZES[:rank]) : sum(SIZES[: rank + 1])]
    loss = dispersive_loss(model(own), 0.5, dist.group.WORLD)
    loss.backward()
    dist.all_reduce(model.weight.grad)
    if rank == 1:
        torch.save((loss.detach(), model.weight.grad / len(SIZES)), f"{folder}/result.pt")
    dist.destroy_process_group()


def test_two_ranks_of_unlike_batches_equal_one_process(tmp_path: Path) -> None:
    mp.spawn(compute, args=(str(tmp_path),), nprocs=len(SIZES))
    loss, gradient = torch.load(tmp_path / "result.pt")
    model = layer()
    expected = dispersive_loss(model(samples()), 0.5)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, model.weight.grad)
