"""DeepSpeed: starting it, its configuration, and reading parameters that it has partitioned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.extras import require

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


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
    with _bad_gradient_seen(engine, look=loss_scale == 1) as seen:
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
    with _replaced(engine.optimizer, "step", lambda: None):
        engine.step()
    return StepOutcome(norm, True, 1.0, bad)


@contextmanager
def _replaced(target: object, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Puts a function in the place of an object's method meanwhile."""
    own = vars(target).get(name)
    setattr(target, name, method)
    try:
        yield
    finally:
        if own is None:
            delattr(target, name)
        else:
            setattr(target, name, own)


@contextmanager
def _bad_gradient_seen(engine: DeepSpeedEngine, *, look: bool) -> Iterator[list[str]]:
    """Looks for the bad gradient where DeepSpeed has found one, in the moment before it drops them all."""
    optimizer = engine.optimizer
    name = "clear_hp_grads" if hasattr(optimizer, "clear_hp_grads") else "zero_grad"
    drop = getattr(optimizer, name)
    seen: list[str] = []
    done = not look

    def look_and_drop(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        if optimizer.overflow and not done:
            done = True
            bad = _first_bad_gradient(engine.module)
            seen.extend([bad] if bad else [])
        return drop(*args, **kwargs)

    with _replaced(optimizer, name, look_and_drop):
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


def master_weights(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Like :func:`gathered_parameters`, with the optimizer's float32 master copy where there is one."""
    from deepspeed.utils import safe_get_full_fp32_param

    parameters = dict(engine.module.named_parameters())
    whole = whole_masters(engine)
    for name, value in gathered_parameters(engine.module):
        parameter = parameters.get(name)
        master = None if parameter is None else whole.get(parameter, safe_get_full_fp32_param(parameter))
        yield name, value if master is None else master.detach()


def whole_masters(engine: DeepSpeedEngine) -> dict[nn.Parameter, Tensor]:
    """Each parameter's float32 master copy with the optimizer of bf16 and fp16 without ZeRO; else empty."""
    groups = getattr(engine.optimizer, "fp16_groups", []), getattr(engine.optimizer, "fp32_groups", [])
    return {low: high for lows, highs in zip(*groups, strict=False) for low, high in zip(lows, highs, strict=True)}
