"""DeepSpeed: starting it, its configuration, and reading parameters that it has partitioned."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.extras import require

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


OLDEST_DEEPSPEED: Final = (0, 19, 3)
COMPUTE_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteGradientError(UserError):
    """The gradient is not finite although the loss is."""


def engine_config(config: TrainConfig) -> dict[str, Any]:
    """The DeepSpeed configuration, every value that matters written out rather than left to a default."""
    training = config.training
    values: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        # DeepSpeed 0.19.3 changed the default from 0 to 1.
        "gradient_clipping": training.gradient_clipping,
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {"enabled": training.precision == "fp16"},
        "zero_optimization": _zero_config(config),
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": False,
        # torch's AdamW, on the CPU too: DeepSpeed's own compiles when it starts and rounds differently.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
    if training.precision == "fp16":
        scaling = training.loss_scaling
        values["fp16"] |= {
            "loss_scale": 0,  # dynamic
            "initial_scale_power": scaling.initial_scale_power,
            "loss_scale_window": scaling.window,
            "hysteresis": scaling.hysteresis,
            "min_loss_scale": scaling.min_scale,
        }
    if training.precision != "fp32":
        # By default gradients are also summed over ranks and micro-steps in the precision of the weights.
        values["communication_data_type"] = "fp32"
        values["data_types"] = {"grad_accum_dtype": "fp32"}
    return values


def _zero_config(config: TrainConfig) -> dict[str, Any]:
    settings = config.deepspeed
    zero: dict[str, Any] = {"stage": settings.zero_stage, "reduce_bucket_size": settings.reduce_bucket_size}
    if settings.zero_stage in (1, 2):
        zero["allgather_bucket_size"] = settings.allgather_bucket_size
    if settings.zero_stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": settings.stage3_param_persistence_threshold,
            "stage3_prefetch_bucket_size": settings.stage3_prefetch_bucket_size,
            "stage3_max_live_parameters": settings.stage3_max_live_parameters,
        }
    for key in ("offload_optimizer", "offload_param"):
        device = getattr(settings, key)
        if device is not None:
            zero[key] = {"device": device, "pin_memory": torch.cuda.is_available()}
            if device == "nvme":
                zero[key]["nvme_path"] = str(settings.nvme_path)
    return zero


def start_engine(model: nn.Module, config: TrainConfig) -> DeepSpeedEngine:
    """Wraps the model and an optimizer of the parameters that require gradients.

    Args:
        model: In float32, or partitioned already.
        config: Optimizer, precision, ZeRO stage, offload.
    """
    deepspeed = require("deepspeed", extra="train")
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.optimizer.lr,
        betas=(config.optimizer.betas[0], config.optimizer.betas[1]),
        weight_decay=config.optimizer.weight_decay,
        eps=config.optimizer.eps,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=engine_config(config))
    return engine


def check_engine(config: TrainConfig) -> None:
    """Checks that this machine and its DeepSpeed can do what the configuration asks for.

    Raises:
        UserError: DeepSpeed is too old, the device cannot compute in the precision asked for, or nvme offload lacks its
            folder or library.
    """
    version = str(require("deepspeed", extra="train").__version__)
    if _release(version) < OLDEST_DEEPSPEED:
        oldest = ".".join(map(str, OLDEST_DEEPSPEED))
        raise UserError(
            f"DeepSpeed {version} is installed; {oldest} or later is needed: before it, ZeRO 3 with activation "
            f"checkpointing and frozen parameters fails (DeepSpeed #8148). pip install 'deepspeed>={oldest}'"
        )
    accelerator = require("deepspeed.accelerator", extra="train").get_accelerator()
    supported = {"fp32": True, "bf16": accelerator.is_bf16_supported(), "fp16": accelerator.is_fp16_supported()}
    if not supported[config.training.precision]:
        usable = " or ".join(name for name, works in supported.items() if works)
        raise UserError(
            f"training.precision={config.training.precision}: this {accelerator.device_name()} does not support it; "
            f"use {usable}"
        )
    settings = config.deepspeed
    if "nvme" in (settings.offload_optimizer, settings.offload_param):
        folder = Path(str(settings.nvme_path))
        if not folder.is_dir():
            raise UserError(f"deepspeed.nvme_path: {folder} is not a folder")
        builder = require("deepspeed.ops.op_builder", extra="train").AsyncIOBuilder()
        if not builder.is_compatible(verbose=False):
            raise UserError(
                "offload to nvme needs DeepSpeed's asynchronous I/O, which cannot be built here: install libaio's "
                "headers (Debian: libaio-dev) and a C++ compiler, or offload to cpu"
            )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def step(engine: DeepSpeedEngine) -> float:
    """Ends a micro-step; at the end of an accumulation, takes the optimizer step.

    Returns:
        Global norm of the gradient before clipping where the optimizer stepped; 0 between.

    Raises:
        NonFiniteGradientError: The gradient is not finite. Weights and optimizer are not to be saved.
    """
    boundary = engine.is_gradient_accumulation_boundary()
    # ZeRO and the bf16 optimizer report their norm after the step; plain fp32 reports none.
    reports_norm = hasattr(engine.optimizer, "_global_grad_norm")
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
    for name, value in gathered_parameters(engine.module):
        parameter = parameters.get(name)
        master = safe_get_full_fp32_param(parameter) if parameter is not None else None
        yield name, value if master is None else master.detach()
