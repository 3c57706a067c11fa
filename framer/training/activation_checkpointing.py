"""Recomputing blocks in the backward pass.

Each block's own call runs under a checkpoint, rather than what diffusers' models hand over to theirs: some leave
arguments out there that they give their blocks otherwise, and some hand over none of their blocks.

Only non-reentrant checkpoints are used: with reentrant ones the features that FRAMER taps lose gradients, without an
error, under ZeRO 3 and wherever what comes before the blocks is frozen.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from framer.config.engine import ActivationCheckpointingConfig
from framer.errors import ConfigError
from framer.extras import require
from framer.features.adapters import adapter_for
from framer.features.recomputation import Checkpoint, is_compiled, recompute
from framer.models.controlled import CONTROLNET, ControlledModel


def enable_activation_checkpointing(model: nn.Module, config: ActivationCheckpointingConfig) -> tuple[str, ...]:
    """Makes the model recompute the blocks that the configuration selects, in place of diffusers' own checkpointing.

    Args:
        model: A model that has an adapter, with the distributed engine already started and its blocks compiled, where
            they are to be. Of a U-Net the resnets and transformer blocks within the selected stages are recomputed, or
            the stages themselves where they are compiled. A ControlNet's blocks beside it are selected by their names
            within it.
        config: Backend, which blocks, and where their inputs wait.

    Returns:
        Names of the recomputed blocks; none where checkpointing is off.

    Raises:
        ConfigError: No block's name matches the pattern.
    """
    if config.backend is None:
        return ()
    adapter = adapter_for(model)
    blocks = [
        (name, number)
        for number, (name, block) in enumerate(zip(adapter.block_names, adapter.blocks, strict=True))
        if any(True for _ in block.parameters())  # a U-Net's last layer is an activation
    ]
    matching = [(name, number) for name, number in blocks if fnmatchcase(name, config.blocks)]
    if not matching:
        raise ConfigError(
            f"training.activation_checkpointing.blocks: '{config.blocks}' matches none of the blocks "
            f"{blocks[0][0]} to {blocks[-1][0]}"
        )
    if getattr(adapter.model, "is_gradient_checkpointing", False):
        adapter.model.disable_gradient_checkpointing()
    selected = matching[:: config.every]
    run_checkpointed = _deepspeed_checkpoint() if config.backend == "deepspeed" else _torch_checkpoint(config)
    for _, number in selected:
        block = adapter.blocks[number]
        for module in (block,) if is_compiled(block) else adapter.recomputed_parts(number):
            recompute(module, run_checkpointed)
    beside = _controlnet_blocks(model, config.blocks)[:: config.every]
    for _, block in beside:
        recompute(block, run_checkpointed)
    return tuple(name for name, _ in (*selected, *beside))


def _controlnet_blocks(model: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, ControlledModel):
        return []
    blocks = {name: block for name, block in model.control_blocks.items() if fnmatchcase(name, pattern)}
    return [(f"{CONTROLNET}.{name}", block) for name, block in blocks.items()]


def _torch_checkpoint(config: ActivationCheckpointingConfig) -> Checkpoint:
    if not config.cpu_offload:
        return lambda function, *inputs: checkpoint(function, *inputs, use_reentrant=False)

    def offloaded(function: Checkpoint, *inputs: Any) -> Any:
        # A non-reentrant checkpoint saves its inputs as autograd does, so that this hook sees them and nothing else.
        with save_on_cpu(pin_memory=torch.cuda.is_available()):
            return checkpoint(function, *inputs, use_reentrant=False)

    return offloaded


def _deepspeed_checkpoint() -> Checkpoint:
    # Unconfigured it neither partitions the inputs nor moves them to the CPU, which would empty the tapped features.
    function: Checkpoint = require("deepspeed", extra="train").checkpointing.non_reentrant_checkpoint
    return function
