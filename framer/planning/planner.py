"""Plans of a run under several settings, and the choice among them."""

from __future__ import annotations

from typing import NamedTuple

from framer.config.training import TrainConfig
from framer.planning.activations import MicroStep, StepFlops, trace_micro_step
from framer.planning.communication import Communication, step_communication
from framer.planning.memory import MemoryPlan, predict_memory
from framer.planning.settings import Setting, settings_by_cost, with_batch_size

LARGEST_BATCH = 4096
"""Beyond this, memory is not what limits the batch."""


class Plan(NamedTuple):
    """A run under one setting.

    Attributes:
        label: A few words.
        overrides: What to add to the command line; empty for the configuration as it is.
        batch_size: Of a rank.
        memory: Of the rank that takes most.
        communication: Of a rank, in an optimizer step.
        flops: Of a rank, in an optimizer step.
    """

    label: str
    overrides: tuple[str, ...]
    batch_size: int
    memory: MemoryPlan
    communication: Communication
    flops: StepFlops


class Planner:
    """Plans runs of one configuration; every micro-step is traced once.

    Args:
        config: The run.
        world_size: Number of ranks.
        foreach: Whether AdamW updates all tensors at once, as it does on GPUs.
    """

    def __init__(self, config: TrainConfig, *, world_size: int, foreach: bool = True) -> None:
        self.config = config
        self.world_size = world_size
        self._foreach = foreach
        self._traces: dict[tuple[str, int, bool], MicroStep] = {}

    def as_configured(self) -> Plan:
        """The run as it is configured."""
        return self._plan(self.config, "as configured", ())

    def plan(self, setting: Setting, *, batch_size: int | None = None) -> Plan:
        """The run under a setting, with its own batch size or another."""
        config = setting.apply(self.config)
        overrides = setting.overrides(self.config)
        if batch_size is not None:
            config = with_batch_size(config, batch_size)
            overrides.append(f"training.batch_size={batch_size}")
        return self._plan(config, setting.label, tuple(overrides))

    def trace(self, config: TrainConfig) -> MicroStep:
        """The micro-step of a configuration that differs from this planner's in its setting and batch size alone."""
        partitioned = config.deepspeed.zero_stage == 3
        training = config.training
        key = (training.activation_checkpointing.model_dump_json(), training.batch_size, partitioned)
        if key not in self._traces:
            self._traces[key] = trace_micro_step(config, partitioned=partitioned)
        return self._traces[key]

    def unpartitioned(self, config: TrainConfig) -> MicroStep:
        """The same micro-step with whole parameters, which computes the same and tells recomputation apart."""
        whole = config.deepspeed.model_copy(update={"zero_stage": 2, "offload_optimizer": None, "offload_param": None})
        return self.trace(config.model_copy(update={"deepspeed": whole}))

    def flops(self, config: TrainConfig) -> StepFlops:
        """Operations of an optimizer step."""
        micro_steps = config.training.gradient_accumulation_steps
        return StepFlops(*(micro_steps * part for part in self.unpartitioned(config).flops))

    def _plan(self, config: TrainConfig, label: str, overrides: tuple[str, ...]) -> Plan:
        step = self.trace(config)
        last = self.world_size - 1
        plans = [
            predict_memory(step, config, world_size=self.world_size, rank=rank, foreach=self._foreach)
            # In stage 3, and without partitions, all ranks are alike.
            for rank in (sorted({0, last // 2, last}) if config.deepspeed.zero_stage in (1, 2) else [0])
        ]
        memory = max(plans, key=lambda plan: plan.peak.bytes)
        return Plan(
            label,
            overrides,
            config.training.batch_size,
            memory,
            step_communication(step, config, world_size=self.world_size, gathered_elements=memory.gathered_elements),
            self.flops(config),
        )


class Recommendation(NamedTuple):
    """What to use.

    Attributes:
        fitting: The setting that costs least and fits with the configured batch size; None if none does.
        largest: The same setting with the largest batch that fits.
        smallest: Where nothing fits, the setting that takes least, with the configured batch size.
        single: Where nothing fits, the same with a batch of 1.
    """

    fitting: Plan | None
    largest: Plan | None = None
    smallest: Plan | None = None
    single: Plan | None = None


def recommend(planner: Planner, budget: int) -> Recommendation:
    """Chooses the setting that costs least time among those that fit.

    Args:
        planner: Of the run.
        budget: Bytes of a device that a plan may take.
    """
    tried: list[tuple[Setting, Plan]] = []
    for setting in settings_by_cost(planner.config):
        plan = planner.plan(setting)
        if plan.memory.peak.bytes <= budget:
            return Recommendation(plan, _largest_batch(planner, setting, plan, budget))
        tried.append((setting, plan))
    setting, smallest = min(tried, key=lambda each: each[1].memory.peak.bytes)
    single = planner.plan(setting, batch_size=1) if smallest.batch_size > 1 else None
    return Recommendation(None, smallest=smallest, single=single)


def _largest_batch(planner: Planner, setting: Setting, fitting: Plan, budget: int) -> Plan:
    """The setting with the largest batch that fits; peaks grow with the batch, nearly in proportion."""
    plans = {fitting.batch_size: fitting}

    def peak(batch_size: int) -> int:
        if batch_size not in plans:
            plans[batch_size] = planner.plan(setting, batch_size=batch_size)
        return plans[batch_size].memory.peak.bytes

    fits, fails = fitting.batch_size, LARGEST_BATCH + 1
    activations = max(1, fitting.memory.peak.parts["activations"])
    guess = min(max(fits + 1, int(fits * (1 + (budget - peak(fits)) / activations))), LARGEST_BATCH)
    while fails - fits > 1:
        if peak(guess) <= budget:
            fits = guess
        else:
            fails = guess
        low, high = sorted(plans)[-2:] if fails > LARGEST_BATCH else (fits, fails)
        slope = (peak(high) - peak(low)) / (high - low)
        # Where the batch does not show in the peak, as in that of the optimizer step, there is nothing to go by.
        aim = int(low + (budget - peak(low)) / slope) if slope > 0 else 2 * fits
        guess = min(max(aim, fits + 1), fails - 1)
    return plans[fits] if fits != fitting.batch_size else fitting
