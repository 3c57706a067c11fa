"""Processes that train together: joining them, and failing together instead of waiting for each other."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import socket
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from framer.config.distributed import DistributedConfig
from framer.errors import UserError
from framer.extras import require
from framer.training.rendezvous import Place, meet, read_place

Result = TypeVar("Result")


def start_distributed(config: DistributedConfig | None = None) -> None:
    """Joins the processes that the launcher started, or makes a group of this one alone.

    The backend is NCCL where there are GPUs and gloo otherwise. The group ends with the process.

    Args:
        config: How long to wait for other ranks.

    Raises:
        UserError: The launcher's variables are incomplete or contradict each other, a rank does not come, or the
            node has fewer GPUs than ranks.
    """
    if dist.is_initialized():
        return
    config = config or DistributedConfig()
    deepspeed = require("deepspeed", extra="train")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls torch's collectives by names that a newer torch warns of; users can do nothing about it.
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    # It would compile a shared-memory collective for CPUs at start, and fail where there is no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    place = read_place(os.environ)
    device = _own_gpu(place) if torch.cuda.is_available() else None
    # DeepSpeed and the data loaders' processes read these.
    os.environ.update(
        RANK=str(place.rank),
        WORLD_SIZE=str(place.world_size),
        LOCAL_RANK=str(place.local_rank),
        MASTER_ADDR=place.master_addr,
        MASTER_PORT=str(place.master_port),
    )
    dist.init_process_group(
        "gloo" if device is None else "nccl",
        store=meet(place, seconds=config.rendezvous_seconds),
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=config.timeout_seconds),
        device_id=device if place.world_size > 1 else None,
    )
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    if device is None:
        atexit.register(_stop_distributed)


def _own_gpu(place: Place) -> torch.device:
    gpus = torch.cuda.device_count()
    if place.local_rank >= gpus:
        raise UserError(
            f"rank {place.rank} is number {place.local_rank} on {socket.gethostname()} (counted from 0), where it "
            f"sees {gpus} GPU(s); start one rank a GPU, and let each see all of its node's (srun --gpus-per-node, not "
            "--gpus-per-task)"
        )
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


def _stop_distributed() -> None:
    """Ends a gloo process group and its threads while Python still runs.

    A thread that frees a tensor after that aborts the process, and a run that succeeded exits with SIGABRT:
    https://github.com/pytorch/pytorch/pull/179291.
    """
    if dist.is_initialized():
        require("deepspeed", extra="train").comm.destroy_process_group()
        gc.collect()  # the threads end with the last reference to their group, and DeepSpeed's engine is in cycles


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over all ranks."""
    if dist.get_world_size() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def max_over_ranks(values: list[int], device: torch.device) -> list[int]:
    """Largest of each value over all ranks.

    Args:
        values: As many on every rank.
        device: Where collectives of the process group work.
    """
    if dist.get_world_size() == 1:
        return values
    largest = torch.tensor(values, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return [int(value) for value in largest.tolist()]


def gather_objects(value: Result) -> list[Result]:
    """Every rank's value, in the order of ranks."""
    values: list[Result | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def raise_on_all_ranks(failure: str | None, what: str) -> None:
    """Raises on every rank if any rank has failed; every rank must call it.

    Args:
        failure: This rank's error message, or None.
        what: What was tried, the beginning of the message.

    Raises:
        UserError: Some rank failed; names the first.
    """
    for rank, message in enumerate(gather_objects(failure)):
        if message is not None:
            where = f"rank {rank}: " if dist.get_world_size() > 1 else ""
            raise UserError(f"{what}: {where}{message}")


def on_rank_zero(action: Callable[[], Result]) -> Result:
    """Runs ``action`` on rank 0 alone and gives its result to all; every rank must call it.

    Args:
        action: Returns something that can be pickled.

    Raises:
        UserError: The action failed on rank 0, which raises the error itself.
    """
    outcome: list[object] = [None, None]
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as caught:  # whatever it is, the other ranks must not wait for this one
            error, outcome[1] = caught, f"{caught}" or type(caught).__name__
    dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise UserError(f"rank 0: {outcome[1]}")
    return outcome[0]  # type: ignore[return-value]
