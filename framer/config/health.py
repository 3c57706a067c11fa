"""What a long run tolerates, what it watches, and the average of its weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from framer.config.base import ConfigSection
from framer.config.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class HealthConfig(ConfigSection):
    """When a run warns, skips a step, and stops."""

    max_skipped_steps: NonNegativeInt = 10
    """Consecutive optimizer steps that may be skipped because the loss or the gradient is not finite; one more stops
    the run. 0 stops at the first."""
    rank_timeout: NonNegativeFloat = 45.0
    """Seconds without a sign of life after which a rank counts as lost and ends the others; 0 does not watch."""
    stall_seconds: NonNegativeFloat = 300.0
    """Seconds of waiting for a batch after which a warning is written, and again after as many; 0 does not warn."""
    peak_tflops: PositiveFloat | None = None
    """What the device can compute in the run's precision, in 1e12 floating-point operations a second, for
    ``time.mfu``; null takes the data sheet's figure where the device is known."""


class EmaConfig(ConfigSection):
    """Exponential moving average of the trained weights, which evaluation and export then use."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Weight of the old average in the new one, for example 0.9999; null: no average."""
    warmup: bool = True
    """Let the decay of the n-th update, counted from 0, be at most (1 + n) / (10 + n)."""
    every: PositiveInt = 1
    """Optimizer steps between updates; with k, choose the k-th power of the decay of every step."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> EmaConfig:
        if self.decay is None and (not self.warmup or self.every != 1):
            raise ValueError("warmup and every have no effect with decay null; set it to 0.9999, for example")
        return self
