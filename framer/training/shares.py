"""The average of the weights in a checkpoint: each rank's share put together, and shared out to other ranks.

A rank's state holds its share of parameter ``name`` under ``ema`` as ``average.name``: the whole parameter without
ZeRO, else a part of the flattened one, in the order of ranks, and with padding at its end in stage 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

EMA = "ema"
_AVERAGE = "average."


def rank_state_file(rank: int) -> str:
    """File name of what one rank saves beside DeepSpeed's files."""
    return f"rank-state-{rank}.pt"


def whole_averages(checkpoint: Path, world_size: int) -> dict[str, Tensor]:
    """The average of each parameter that has one, flattened, padding included.

    Args:
        checkpoint: A verified checkpoint.
        world_size: Ranks that saved it.
    """
    partitioned = any(checkpoint.glob("*_optim_states.pt"))
    shares: dict[str, list[Tensor]] = {}
    for rank in range(world_size if partitioned else 1):
        state = torch.load(checkpoint / rank_state_file(rank), map_location="cpu", mmap=True, weights_only=True)
        for key, share in state.get(EMA, {}).items():
            if key.startswith(_AVERAGE):
                shares.setdefault(key.removeprefix(_AVERAGE), []).append(share)
    return {name: torch.cat([part.flatten() for part in parts]) for name, parts in shares.items()}


def share_averages(engine: DeepSpeedEngine, state: Mapping[str, Any], averages: Mapping[str, Tensor]) -> dict[str, Any]:
    """This rank's state of the average among another number of ranks.

    Args:
        engine: Of the present ranks.
        state: Some rank's state of the average; what is not a share is the same on all.
        averages: From :func:`whole_averages`.
    """
    shared = {key: value for key, value in state.items() if not key.startswith(_AVERAGE)}
    for name, parameter in engine.module.named_parameters():
        if name in averages:
            share = _own_share(parameter, averages[name])
            if share is not None:
                shared[f"{_AVERAGE}{name}"] = share.clone()
    return shared


def _own_share(parameter: nn.Parameter, whole: Tensor) -> Tensor | None:
    if hasattr(parameter, "ds_id"):
        size, numel = int(parameter.ds_tensor.ds_numel), int(parameter.ds_numel)  # type: ignore[attr-defined]
        rank = dist.get_rank()
        padded = whole.new_zeros(size * dist.get_world_size())
        padded[:numel] = whole[:numel]
        return padded[rank * size : (rank + 1) * size]
    flat = whole[: parameter.numel()]
    if not hasattr(parameter, "_hp_mapping"):
        return flat.view_as(parameter)
    if parameter._hp_mapping is None:
        return None
    address = parameter._hp_mapping.lp_fragment_address
    return flat[address.start : address.start + address.numel]
