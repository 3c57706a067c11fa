"""Building a model of ZeRO 3, partitioned over the ranks as it is made: no rank ever holds it whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from framer.config.training import TrainConfig
from framer.extras import require
from framer.models.build import build_model_by_module
from framer.training.engine import COMPUTE_DTYPES, engine_config

if TYPE_CHECKING:
    from diffusers import ModelMixin


def build_partitioned_model(config: TrainConfig) -> ModelMixin:
    """The transformer with every parameter partitioned; every rank must call it.

    Rank 0 reads or draws the weights, a module at a time, and the others receive their parts. The weights equal those
    that :func:`framer.models.build.build_model` gives, in the compute precision.

    Args:
        config: The run; its ZeRO stage is 3.

    Raises:
        UserError: The pretrained folder is missing, incomplete, damaged or of another class, or has other channels.
    """
    deepspeed = require("deepspeed", extra="train")
    accelerator = require("deepspeed.accelerator", extra="train").get_accelerator()
    settings, dtype = engine_config(config), COMPUTE_DTYPES[config.training.precision]
    swapper: Any = None  # with its buffers of gigabytes, one for all modules

    def partition(module: nn.Module) -> None:
        nonlocal swapper
        own = nn.Module()  # Init takes a module with all its children, some of which may not be made yet
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
            own.register_parameter(name, parameter)
        init = deepspeed.zero.Init(module=own, config_dict_or_path=settings, dtype=dtype, param_swapper=swapper)
        swapper = init.param_swapper

    model = build_model_by_module(config.model, seed=config.seed, fill=dist.get_rank() == 0, place=partition)
    for buffer in model.buffers():
        # DeepSpeed places the buffers of models that it has not partitioned already.
        buffer.data = buffer.data.to(torch.device(accelerator.current_device_name()))
    return model
