"""How the model is spread over memory and ranks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from framer.config.base import ConfigSection
from framer.config.types import NonEmptyText, NonNegativeInt, PositiveInt, integer

Offload = Literal["cpu", "nvme"]


class ActivationCheckpointingConfig(ConfigSection):
    """Recomputing blocks in the backward pass instead of keeping their activations.

    ``true`` and ``false`` in place of the section turn it on for every block, and off.
    """

    backend: Literal["torch", "deepspeed"] | None = None
    """``torch`` (``torch.utils.checkpoint``) or ``deepspeed`` (its ``non_reentrant_checkpoint``); null: off. Both keep
    to non-reentrant autograd: reentrant checkpointing loses gradients of features that are tapped."""
    every: PositiveInt = 1
    """Recompute every k-th block, beginning with the first."""
    blocks: NonEmptyText = "*"
    """Recompute only blocks whose name matches this shell pattern, such as ``transformer_blocks.1?``."""
    cpu_offload: bool = False
    """Keep the recomputed blocks' inputs in CPU memory until the backward pass."""

    @model_validator(mode="before")
    @classmethod
    def _from_a_switch(cls, data: object) -> object:
        if isinstance(data, bool):
            return {"backend": "torch" if data else None}
        return data

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> ActivationCheckpointingConfig:
        if self.backend is None and (self.every != 1 or self.blocks != "*" or self.cpu_offload):
            raise ValueError("every, blocks and cpu_offload have no effect with backend null; set it to torch")
        if self.backend == "deepspeed" and self.cpu_offload:
            raise ValueError(
                "cpu_offload needs backend torch: DeepSpeed's empties the tensors that it has moved, which are the "
                "features that FRAMER taps"
            )
        return self


class LossScalingConfig(ConfigSection):
    """Dynamic loss scaling of ``training.precision: fp16``; other precisions ignore it."""

    initial_scale_power: Annotated[int, Field(ge=0, le=32)] = 16
    """The first scale is 2 to this power."""
    window: PositiveInt = 1000
    """Steps without overflow after which the scale doubles."""
    hysteresis: PositiveInt = 2
    """Overflows after which the scale halves."""
    min_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Smallest scale."""


class DeepSpeedConfig(ConfigSection):
    """The engine."""

    zero_stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(integer)] = 0
    """Partitioning over ranks: 1 optimizer state, 2 also gradients, 3 also parameters."""
    stage3_param_persistence_threshold: NonNegativeInt = 100_000
    """Parameters with fewer elements are not partitioned in stage 3."""
    offload_optimizer: Offload | None = None
    """Where optimizer state and float32 master weights live: null (the device), ``cpu``, ``nvme``. Stages 1 to 3;
    ``nvme`` in stage 3 alone."""
    offload_param: Offload | None = None
    """Where partitioned parameters live between uses; stage 3 alone."""
    nvme_path: NonEmptyText | None = None
    """Folder on a fast local disk; needed by ``nvme``."""
    reduce_bucket_size: PositiveInt = 50_000_000
    """Elements of gradient that are reduced over ranks at once; each bucket takes memory of its size."""
    allgather_bucket_size: PositiveInt = 50_000_000
    """Elements of updated parameters that are gathered at once in stages 1 and 2."""
    stage3_prefetch_bucket_size: NonNegativeInt = 50_000_000
    """Elements of parameters that are gathered ahead of their use in stage 3."""
    stage3_max_live_parameters: NonNegativeInt = 1_000_000_000
    """Elements of gathered parameters that a rank keeps at most in stage 3."""

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> DeepSpeedConfig:
        if self.offload_param is not None and self.zero_stage != 3:
            raise ValueError(f"offload_param {self.offload_param} needs zero_stage 3, got {self.zero_stage}")
        if self.offload_optimizer is not None and self.zero_stage == 0:
            raise ValueError(f"offload_optimizer {self.offload_optimizer} needs zero_stage 1, 2 or 3, got 0")
        if self.offload_optimizer == "nvme" and self.zero_stage != 3:
            raise ValueError(f"offload_optimizer nvme needs zero_stage 3, got {self.zero_stage}; use cpu")
        if "nvme" in (self.offload_optimizer, self.offload_param) and self.nvme_path is None:
            raise ValueError("nvme_path is needed by offload to nvme: a folder on a fast local disk")
        return self
