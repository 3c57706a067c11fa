"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from framer.config.training import LrSchedulerConfig


def learning_rate(step: int, *, peak: float, max_steps: int, config: LrSchedulerConfig) -> float:
    """Learning rate of optimizer step ``step`` (the first is 0).

    Args:
        step: Optimizer steps already taken.
        peak: Largest learning rate.
        max_steps: Steps of the whole run.
        config: Shape and warm-up.
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.type == "constant":
        return peak
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if config.type == "cosine" else 1 - progress
    return peak * (config.final_fraction + (1 - config.final_fraction) * remaining)
