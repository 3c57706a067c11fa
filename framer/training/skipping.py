"""Counting optimizer steps that were skipped, saying why, and stopping when there are too many."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from framer.config.training import TrainConfig
from framer.training.forward import ForwardPass
from framer.training.health import NonFiniteLossError, SkippedSteps, first_non_finite_layer, non_finite_weight
from framer.training.ranks import mean_over_ranks
from framer.training.step_losses import MicroStep, StepLosses

if TYPE_CHECKING:
    from diffusers import ModelMixin


def count_skipped(
    skipped: SkippedSteps,
    parts: Sequence[MicroStep],
    means: StepLosses,
    *,
    model: ModelMixin,
    forward: ForwardPass,
    config: TrainConfig,
    step: int,
    advice: str,
) -> str:
    """Counts the step that was just skipped, and says why it was; every rank must call it.

    Args:
        skipped: The run's counts.
        parts: The step's micro-steps.
        means: Their means over ranks.
        model: To find its first bad layer.
        forward: Makes a batch's inputs again.
        config: The run.
        step: Number of the step, for messages.
        advice: What to do, the end of messages.

    Returns:
        The reason, for the metrics.

    Raises:
        NonFiniteLossError: It is one too many, or no step can do better.
    """
    outcome = parts[-1].outcome
    finite = math.isfinite(float(means.loss))
    training = config.training
    lowest = training.loss_scaling.min_scale if training.precision == "fp16" else math.inf
    if skipped.count(finite_loss=finite, loss_scale=outcome.loss_scale, lowest_scale=lowest):
        return f"the gradient overflows with the loss scale {outcome.loss_scale:g}, which is lowered"
    if finite:
        where = f"the first parameter with such a gradient is {outcome.bad_parameter or 'unknown'}"
        reason = f"the gradient is not finite although the loss is; {where}"
    else:
        values = f"noise loss {float(means.noise_loss):g}, FRAMER loss {float(means.framer_loss):g}"
        reason = f"the loss is not finite ({values}); {_first_bad_layer(parts, model, forward)}"
    weight = non_finite_weight(model)
    limit = config.health.max_skipped_steps
    if weight is not None:
        raise NonFiniteLossError(f"step {step}: {reason}; the weight {weight} is not finite itself. {advice}")
    if skipped.consecutive > limit:
        many = f" {skipped.consecutive} steps in a row (health.max_skipped_steps {limit})." if limit else ""
        raise NonFiniteLossError(f"step {step}: {reason}.{many} {advice}")
    if dist.get_rank() == 0:
        sys.stderr.write(
            f"\nstep {step} skipped: {reason} ({skipped.consecutive} in a row, at most {limit}; {skipped.total} in "
            "all)\n"
        )
    return reason


def _first_bad_layer(parts: Sequence[MicroStep], model: ModelMixin, forward: ForwardPass) -> str:
    losses = mean_over_ranks(torch.stack([part.losses.loss for part in parts]))
    bad = int(torch.isfinite(losses).logical_not().int().argmax())
    _, inputs = forward.prepare(parts[bad].batch)
    layer = first_non_finite_layer(model, inputs)
    return f"the first layer whose output is not finite is {layer}" if layer else "every layer's output is finite"
