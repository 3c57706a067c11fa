"""DeepSpeed: starting it, its configuration, and reading parameters that it has partitioned."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.extras import require
from framer.patching import replaced

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


OLDEST_DEEPSPEED: Final = (0, 19, 3)
COMPUTE_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class StepOutcome(NamedTuple):
    """What the end of a micro-step did; the same on every rank."""

    gradient_norm: float
    """Global norm before clipping where the optimizer was due, infinite or NaN where it was skipped; 0 between."""
    skipped: bool
    """Whether the optimizer was due and left weights and state as they were, the gradient not being finite."""
    loss_scale: float
    """Factor of the loss in this step; 1 but in fp16."""
    bad_parameter: str | None
    """The first parameter whose gradient is not finite; None where that was not looked for or not found."""


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


def step(engine: DeepSpeedEngine) -> StepOutcome:
    """Ends a micro-step; at the end of an accumulation, takes the optimizer step unless the gradient is not finite.

    A skipped step leaves weights, moments and step counts bit-equal and drops the gradient. Every rank must call it;
    all come to the same outcome, because the norm is that of all of them.
    """
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return StepOutcome(0.0, False, 1.0, None)
    if not hasattr(engine.optimizer, "overflow"):
        return _plain_step(engine)
    # DeepSpeed's own optimizers skip such a step by themselves.
    loss_scale = float(engine.optimizer.loss_scale) if hasattr(engine.optimizer, "loss_scale") else 1.0
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None and hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False  # how many skipped steps are too many is not its decision
    # Above the lowest scale of fp16 it is but an overflow.
    with _bad_gradient_seen(engine, look=loss_scale <= getattr(scaler, "min_scale", loss_scale)) as seen:
        engine.step()
    skipped = bool(engine.optimizer.overflow)
    norm = math.inf if skipped else float(engine.get_global_grad_norm())
    return StepOutcome(norm, skipped, loss_scale, next(iter(seen), None))


def _plain_step(engine: DeepSpeedEngine) -> StepOutcome:
    """The step of torch's own optimizer, as in fp32 without ZeRO."""
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if math.isfinite(norm):
        engine.step()
        return StepOutcome(norm, False, 1.0, None)
    bad = _first_bad_gradient(engine.module)
    # The engine must count the step and drop the gradient all the same.
    with replaced(engine.optimizer, "step", lambda: None):
        engine.step()
    return StepOutcome(norm, True, 1.0, bad)


@contextmanager
def _bad_gradient_seen(engine: DeepSpeedEngine, *, look: bool) -> Iterator[list[str]]:
    """Looks for the bad gradient where DeepSpeed has found one, in the moment before it drops them all."""
    optimizer = engine.optimizer
    drop = optimizer.zero_grad
    seen: list[str] = []
    done = not look

    def look_and_drop(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        if optimizer.overflow and not done:
            done = True
            bad = _first_bad_gradient(engine.module)
            seen.extend([bad] if bad else [])
        return drop(*args, **kwargs)

    with replaced(optimizer, "zero_grad", look_and_drop):
        yield seen


def _first_bad_gradient(model: nn.Module) -> str | None:
    """Name of the first parameter whose gradient, of all ranks, is not finite; every rank must call it."""
    from deepspeed.utils import safe_get_full_grad

    for name, parameter in model.named_parameters():
        gradient = safe_get_full_grad(parameter) if parameter.requires_grad else None
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            return name
    return None


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


def release_gathered(engine: DeepSpeedEngine) -> None:
    """Partitions again whatever ZeRO 3 has gathered, or begun to gather ahead of its use.

    DeepSpeed gathers ahead what followed in the last training step. Heads follow the model's pass there, and nowhere
    else: after any other pass theirs would be under way for good, and nothing could read or set the parameters.
    """
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.parameter_offload.partition_all_parameters()


def master_weights(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Like :func:`gathered_parameters`, with the optimizer's float32 master copy where there is one."""
    from deepspeed.utils import safe_get_full_fp32_param

    parameters = dict(engine.module.named_parameters())
    for name, value in gathered_parameters(engine.module):
        parameter = parameters.get(name)
        master = safe_get_full_fp32_param(parameter) if parameter is not None else None
        yield name, value if master is None else master.detach()
