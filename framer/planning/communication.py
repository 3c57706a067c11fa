"""Bytes that a rank sends in an optimizer step."""

from __future__ import annotations

from typing import NamedTuple

from framer.config.training import TrainConfig
from framer.planning.activations import MicroStep
from framer.planning.states import EngineSettings


class Communication(NamedTuple):
    """Bytes that a rank sends in an optimizer step, with ring algorithms; it receives as many.

    Attributes:
        gradients: To sum the gradients over ranks.
        parameters: To give updated parameters to all ranks (stages 1 and 2), or to gather those of each module where it
            runs (stage 3).
        framer: Feature maps that are other ranks' in-batch negatives.
    """

    gradients: int
    parameters: int
    framer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.gradients + self.parameters + self.framer


def step_communication(
    step: MicroStep, config: TrainConfig, *, world_size: int, gathered_elements: int = 0
) -> Communication:
    """What DeepSpeed 0.19 and FRAMER send.

    A ring sends ``V (n - 1) / n`` of V bytes in an all-gather or a reduce-scatter, and twice that in an all-reduce.
    Stages 0 to 2 all-reduce gradients: stage 2 too, in buckets that hold parts of several ranks, after every
    micro-step. Stage 3 reduce-scatters them after every micro-step.

    Args:
        step: A micro-step.
        config: The run.
        world_size: Number of ranks n.
        gathered_elements: Elements of parameters that a rank gathers in a micro-step of stage 3, recomputation included
            (:class:`framer.planning.memory.MemoryPlan`).
    """
    settings, micro_steps = EngineSettings.of(config), config.training.gradient_accumulation_steps
    trained = sum(parameter.numel for parameter in step.parameters if parameter.trained)
    reduced = trained * settings.communication_itemsize
    gradients = {0: 2 * reduced, 1: 2 * reduced, 2: 2 * reduced * micro_steps, 3: reduced * micro_steps}
    parameters = {
        0: 0,
        1: trained * settings.itemsize,
        2: trained * settings.itemsize,
        3: gathered_elements * settings.itemsize * micro_steps,
    }
    part = (world_size - 1) / world_size
    return Communication(
        gradients=int(gradients[settings.stage] * part),
        parameters=int(parameters[settings.stage] * part),
        framer=micro_steps * _exchanged_maps(config, len(step.blocks)) * step.features.bytes * (world_size - 1),
    )


def _exchanged_maps(config: TrainConfig, blocks: int) -> int:
    """Feature maps of its own samples that a rank sends to every other one in a micro-step, forward and backward."""
    settings = config.framer
    if not (settings.enabled and settings.in_batch_negatives_across_ranks):
        return 0
    maps = 1  # the teacher
    if settings.shared_negatives:
        # Each student's is another student's negative; with quantile bands the teacher goes along for the bands.
        maps += (blocks - 1) * (2 if settings.bands == "quantile" else 1)
    return 2 * maps
