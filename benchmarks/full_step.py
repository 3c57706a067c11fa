"""Peak memory of a whole training step of a model too large for the machine, by tensors without storage."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.cases import LossCase, forward_and_backward, framer_kernels_loss
from benchmarks.memory import peak_allocated
from benchmarks.models import SD35_MEDIUM_DUAL_ATTENTION, SD35_MEDIUM_LAYERS, StepCase, training_step
from framer import Framer, FramerConfig
from framer.planning.storages import PeakMemory

SD35_MEDIUM_STEP = StepCase(
    layers=SD35_MEDIUM_LAYERS,
    dual_attention=SD35_MEDIUM_DUAL_ATTENTION,
    batch=16,
    text=333,
    dtype=torch.bfloat16,
    checkpointing=True,
)


class Peak(NamedTuple):
    """Peak of a step: bytes, and the operator that reached it."""

    bytes: int
    operator: str


def step_peak(case: StepCase, *, framer: bool, accumulating: bool = False) -> Peak:
    """Peak memory of the second training step: parameters, AdamW's state, gradients and activations.

    Args:
        case: The model and its inputs.
        framer: Whether FRAMER's loss is part of the step.
        accumulating: Whether the step adds to the gradients of the first one and nothing is updated.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, inputs = case.model(), case.inputs()
        update = None if accumulating else torch.optim.AdamW(model.parameters(), foreach=False)
        added = Framer(model, FramerConfig(preset="paper", feature_space="hidden", weight=0.1)) if framer else None
        step = training_step(model, update, inputs, added)
        with PeakMemory(model) as memory:
            step()  # makes the optimizer's state
            memory.peak, memory.peak_operator = memory.current, ""
            step()
    return Peak(memory.peak, memory.peak_operator)


def workspace_bytes(case: LossCase) -> int:
    """What the portable operators allocate inside of themselves, which `step_peak` does not see, on this device."""
    gradients = case.layers * case.feature_bytes // (case.layers + 1)
    return max(0, peak_allocated(forward_and_backward(framer_kernels_loss("portable"), case)) - gradients)
