"""DeepSpeed: starting it, its configuration, and reading parameters that it has partitioned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.extras import require
from framer.training.masters import whole_masters

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class NonFiniteGradientError(UserError):
    """The gradient is not finite although the loss is."""


def engine_config(config: TrainConfig) -> dict[str, Any]:
    """The DeepSpeed configuration, every value that matters written out rather than left to a default."""
    zero: dict[str, Any] = {"stage": config.deepspeed.zero_stage}
    if config.deepspeed.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = config.deepspeed.stage3_param_persistence_threshold
    values: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.training.batch_size,
        "gradient_accumulation_steps": config.training.gradient_accumulation_steps,
        # DeepSpeed 0.19.3 changed the default from 0 to 1.
        "gradient_clipping": config.training.gradient_clipping,
        "bf16": {"enabled": config.training.precision == "bf16"},
        "zero_optimization": zero,
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": False,
    }
    if config.training.precision == "bf16":
        # By default bf16 gradients are also summed over ranks and micro-steps in bf16.
        values["communication_data_type"] = "fp32"
        if config.deepspeed.zero_stage > 0:
            values["data_types"] = {"grad_accum_dtype": "fp32"}
    return values


def start_engine(model: nn.Module, config: TrainConfig) -> DeepSpeedEngine:
    """Wraps the model and its optimizer.

    Args:
        model: In float32, all parameters to be trained.
        config: Optimizer, precision, ZeRO stage.

    Raises:
        UserError: The device cannot compute in the precision asked for.
    """
    deepspeed = require("deepspeed", extra="train")
    if config.training.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise UserError("training.precision=bf16: this GPU does not support bf16; use fp32")
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.optimizer.lr,
        betas=(config.optimizer.betas[0], config.optimizer.betas[1]),
        weight_decay=config.optimizer.weight_decay,
        eps=config.optimizer.eps,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=engine_config(config))
    return engine


def step(engine: DeepSpeedEngine) -> float:
    """Ends a micro-step; at the end of an accumulation, takes the optimizer step.

    Returns:
        Global norm of the gradient before clipping where the optimizer stepped; 0 between.

    Raises:
        NonFiniteGradientError: The gradient is not finite. Weights and optimizer are not to be saved.
    """
    boundary = engine.is_gradient_accumulation_boundary()
    # ZeRO and the bf16 optimizer report their norm after the step, one of them has no such attribute before its first;
    # plain fp32 reports none.
    reports_norm = engine.zero_optimization() or hasattr(engine.optimizer, "_global_grad_norm")
    norm = 0.0
    if boundary and not reports_norm:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = _checked(float(torch.nn.utils.get_total_norm(gradients)))
    engine.step()
    if boundary and reports_norm:
        norm = _checked(float(engine.get_global_grad_norm()))
    return norm


def _checked(norm: float) -> float:
    # DeepSpeed reports an overflow as -1.
    if not math.isfinite(norm) or norm < 0:
        raise NonFiniteGradientError(f"gradient norm {norm:g}")
    return norm


def gathered_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and whole values of all parameters and persistent buffers, one at a time, on every rank.

    Under ZeRO 3 each is gathered from the ranks; every rank must iterate to the end. The value is valid until the
    next one is asked for.
    """
    deepspeed = require("deepspeed", extra="train")
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        parameter = parameters.get(name)
        if parameter is not None and hasattr(parameter, "ds_id"):
            with deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter.detach()
        else:
            yield name, value.detach()


def master_weights(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Like :func:`gathered_parameters`, with the optimizer's float32 master copy where there is one."""
    from deepspeed.utils import safe_get_full_fp32_param

    parameters = dict(engine.module.named_parameters())
    # What the function above does not know of.
    whole = {p: master for group in whole_masters(engine) for p, master in zip(*group, strict=True)}
    for name, value in gathered_parameters(engine.module):
        parameter = parameters.get(name)
        master = None if parameter is None else whole.get(parameter, safe_get_full_fp32_param(parameter))
        yield name, value if master is None else master.detach()
