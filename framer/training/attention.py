"""The attention backend of a run, on the device and in the precision in which the engine will train."""

from __future__ import annotations

import torch
from torch import nn

from framer.config.training import TrainConfig
from framer.extras import require
from framer.models.attention_backends import check_attention_backend, use_attention_backend
from framer.training.engine import COMPUTE_DTYPES


def check_backend(config: TrainConfig) -> None:
    """Checks ``model.attention_backend`` as far as can be told without the model.

    Raises:
        UserError: There is no such backend, or it cannot train on this machine.
    """
    if config.model.attention_backend is not None:
        dtype = COMPUTE_DTYPES[config.training.precision]
        check_attention_backend(config.model.attention_backend, device=_device(), dtype=dtype)


def use_backend(model: nn.Module, config: TrainConfig) -> None:
    """Lets ``model.attention_backend`` compute the model's attention, which must be without masks.

    Raises:
        UserError: The backend cannot train on this machine, or not all attention of this model.
    """
    if config.model.attention_backend is not None:
        dtype = COMPUTE_DTYPES[config.training.precision]
        use_attention_backend(model, config.model.attention_backend, device=_device(), dtype=dtype)


def _device() -> torch.device:
    return torch.device(require("deepspeed.accelerator", extra="train").get_accelerator().current_device_name())
