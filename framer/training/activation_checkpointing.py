"""Recomputing blocks in the backward pass, through diffusers' own seam.

Only non-reentrant checkpoints are used: with reentrant ones the features that FRAMER taps lose gradients, without an
error, under ZeRO 3 and wherever what comes before the blocks is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from framer.config.engine import ActivationCheckpointingConfig
from framer.errors import ConfigError
from framer.extras import require
from framer.features.adapters import adapter_for
from framer.models.controlled import CONTROLNET, ControlledModel

Checkpoint = Callable[..., Any]


def enable_activation_checkpointing(model: nn.Module, config: ActivationCheckpointingConfig) -> tuple[str, ...]:
    """Makes the model recompute the blocks that the configuration selects.

    Args:
        model: A diffusers model that has an adapter, with the distributed engine already started. Of a U-Net the parts
            of the selected stages are recomputed, as diffusers has it. A ControlNet's blocks beside it are selected
            by their names within it.
        config: Backend, which blocks, and where their inputs wait.

    Returns:
        Names of the recomputed blocks; none where checkpointing is off.

    Raises:
        ConfigError: No block's name matches the pattern, or diffusers cannot recompute blocks of this class.
    """
    if config.backend is None:
        return ()
    adapter = adapter_for(model)
    if not getattr(adapter.model, "_supports_gradient_checkpointing", False):
        raise ConfigError(
            f"training.activation_checkpointing.backend: {config.backend} cannot be used, because diffusers does not "
            f"recompute blocks of {type(adapter.model).__name__}; set it to null"
        )
    matching = [
        (name, block)
        for name, block in zip(adapter.block_names, adapter.blocks, strict=True)
        if fnmatchcase(name, config.blocks) and any(True for _ in block.parameters())
    ]
    if not matching:
        raise ConfigError(
            f"training.activation_checkpointing.blocks: '{config.blocks}' matches none of the blocks "
            f"{adapter.block_names[0]} to {adapter.block_names[-1]}"
        )
    selected = matching[:: config.every]
    beside = _controlnet_blocks(model, config.blocks)[:: config.every]
    recomputed = {id(module) for _, block in (*selected, *beside) for module in block.modules()}
    run_checkpointed = _deepspeed_checkpoint() if config.backend == "deepspeed" else _torch_checkpoint(config)

    def run_block(block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # PRX hands over a block's bound __call__ in place of the block, HunyuanImage arguments by keyword.
        if id(getattr(block, "__self__", block)) not in recomputed:
            return block(*args, **kwargs)
        return run_checkpointed(partial(block, **kwargs) if kwargs else block, *args)

    adapter.model.enable_gradient_checkpointing(gradient_checkpointing_func=run_block)
    if isinstance(model, ControlledModel):
        model.controlnet.enable_gradient_checkpointing(gradient_checkpointing_func=run_block)
    return tuple(name for name, _ in (*selected, *beside))


def _controlnet_blocks(model: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, ControlledModel):
        return []
    blocks = {name: block for name, block in model.control_blocks.items() if fnmatchcase(name, pattern)}
    return [(f"{CONTROLNET}.{name}", block) for name, block in blocks.items()]


def _torch_checkpoint(config: ActivationCheckpointingConfig) -> Checkpoint:
    if not config.cpu_offload:
        return lambda block, *args: checkpoint(block, *args, use_reentrant=False)

    def offloaded(block: nn.Module, *args: Any) -> Any:
        # A non-reentrant checkpoint saves its inputs as autograd does, so that this hook sees them and nothing else.
        with save_on_cpu(pin_memory=torch.cuda.is_available()):
            return checkpoint(block, *args, use_reentrant=False)

    return offloaded


def _deepspeed_checkpoint() -> Checkpoint:
    # Unconfigured it neither partitions the inputs nor moves them to the CPU, which would empty the tapped features.
    function: Checkpoint = require("deepspeed", extra="train").checkpointing.non_reentrant_checkpoint
    return function
