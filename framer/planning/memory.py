"""Peak memory of a training step on one rank, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Final, NamedTuple

from framer.config.training import TrainConfig
from framer.planning.activations import BACKWARD, FRAMER, GRADIENT, FeatureMaps, MicroStep
from framer.planning.ledger import Ledger, Peak, Phase
from framer.planning.partitioning import DONE, NEEDED, Partitioned, WholeParameters
from framer.planning.states import EngineSettings, states_class

AVERAGE_ITEMSIZE: Final = 4
"""Bytes of a weight's moving average, which each rank keeps of its own share."""


class MemoryPlan(NamedTuple):
    """What a rank takes.

    Attributes:
        device: The most that each phase takes of the device.
        host: The most that each phase takes of the host's memory beside what the process itself takes.
        gathered_elements: Elements of parameters that a rank receives in a micro-step (stage 3).
    """

    device: Mapping[Phase, Peak]
    host: Mapping[Phase, Peak]
    gathered_elements: int

    @property
    def peak(self) -> Peak:
        """The most of the device in any phase."""
        return max(self.device.values(), key=lambda peak: peak.bytes)

    @property
    def host_peak(self) -> Peak:
        """The most of the host in any phase."""
        return max(self.host.values(), key=lambda peak: peak.bytes)


def predict_memory(
    step: MicroStep,
    config: TrainConfig,
    *,
    world_size: int,
    rank: int = 0,
    foreach: bool = True,
    workspace: bool = True,
) -> MemoryPlan:
    """Peak memory of an optimizer step: the last of its micro-steps, the reduction of gradients, and the update.

    Args:
        step: The micro-step; of stage 3 with ``partitioned``.
        config: The run.
        world_size: Number of ranks.
        rank: Which of them; ranks differ by what their partition of the weights happens to straddle.
        foreach: Whether AdamW updates all tensors at once, as it does on GPUs.
        workspace: Whether to count what FRAMER's operators allocate inside of themselves.
    """
    settings = EngineSettings.of(config)
    device, host = Ledger(), Ledger()
    trained = [index for index, parameter in enumerate(step.parameters) if parameter.trained]
    states = states_class(settings)(
        settings,
        tuple(step.parameters[index].numel for index in trained),
        tuple(parameter.numel for parameter in step.parameters if not parameter.trained),
        world_size,
        rank,
        config.training.gradient_accumulation_steps > 1,
        foreach,
        device,
        host,
    )
    device.hold("parameters", step.buffer_bytes)
    host.hold("activations", step.host_bytes)
    states.begin()
    if config.training.ema.decay is not None:
        share = states.total if settings.stage == 0 else ceil(states.total / world_size)
        average = host if settings.offload_optimizer != "none" else device
        average.hold("optimizer states", share * AVERAGE_ITEMSIZE)
    whole = None
    if settings.stage == 3:
        order = [moment.which for moment in step.moments if moment.event in NEEDED]
        whole = WholeParameters(_partitioned(step, settings, world_size), order)
    place = {parameter: among for among, parameter in enumerate(trained)}
    held_inside = framer_workspace(config, step.features, world_size) if workspace else 0
    for moment in step.moments:
        device.set("activations", moment.bytes)
        temporaries = held_inside if moment.event == FRAMER else 0
        if moment.event == BACKWARD:
            device.phase = host.phase = "backward"
        elif moment.event == GRADIENT:
            device.note()
            states.gradient(place[moment.which])
        elif moment.event in NEEDED and whole is not None:
            highest = whole.needed(moment.which)
            device.set("gathered parameters", highest)
            device.note()
            device.set("gathered parameters", whole.bytes)
        elif moment.event in DONE and whole is not None:
            whole.done(moment.which)
            device.set("gathered parameters", whole.bytes)
        if moment.event != GRADIENT:
            device.note(temporaries=temporaries)
        host.note()
    device.set("gathered parameters", 0)
    device.phase = host.phase = "reduction"
    states.reduce()
    host.note()
    device.phase = host.phase = "optimizer step"
    host.set("activations", 0)
    states.update()
    host.note()
    return MemoryPlan(device.peaks, host.peaks, 0 if whole is None else whole.gathered)


def framer_workspace(config: TrainConfig, features: FeatureMaps, world_size: int) -> int:
    """Bytes that FRAMER's operators hold inside of themselves: other ranks' maps, and float32 scratch for teachers.

    ``gather`` receives the maps of all ranks, joins them and takes out those of the others; ``ring`` holds two ranks'
    maps. The Triton backend keeps high-passed teachers in float32. Derived from the source, not measured on a GPU.

    Args:
        config: The run.
        features: One layer's maps on a rank.
        world_size: Ranks.
    """
    settings = config.framer
    if not settings.enabled:
        return 0
    own = features.bytes
    scratch = features.elements * 4
    if world_size == 1 or not settings.in_batch_negatives_across_ranks:
        return scratch
    if settings.group_mode == "ring":
        return 2 * own + 2 * scratch
    return 2 * own * (world_size + 1) + scratch * (world_size - 1)


def _partitioned(step: MicroStep, settings: EngineSettings, world_size: int) -> Partitioned:
    return Partitioned(
        numel=tuple(parameter.numel for parameter in step.parameters),
        modules=step.module_parameters,
        world_size=world_size,
        offloaded=settings.offload_param != "none",
        itemsize=settings.itemsize,
        persistence_threshold=settings.persistence_threshold,
        prefetch=settings.prefetch,
        max_live=settings.max_live,
        max_reuse_distance=settings.max_reuse_distance,
    )
