"""Peak memory of real training steps, phase by phase, counted by tensor storages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.planning.storages import PeakMemory
from framer.training.batches import stream_batches
from framer.training.ranks import start_distributed
from framer.training.trainer import Trainer


class PhaseMemory(PeakMemory):
    """Counts real storages and keeps the peak of every phase of a step."""

    def __init__(self) -> None:
        super().__init__(device="cpu")  # DeepSpeed keeps shapes as tensors on the device meta
        self.phases: dict[str, int] = {}
        self.operators: dict[str, str] = {}
        self._phase = ""

    def enter(self, phase: str) -> None:
        """Ends the phase before."""
        if self._phase and self.peak >= self.phases.get(self._phase, 0):
            self.phases[self._phase], self.operators[self._phase] = self.peak, self.peak_operator
        self._phase = phase
        self.restart()

    def during(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a phase; what follows it is the phase ``between``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.enter("between")

        return run


def measure(config: TrainConfig, steps: int) -> dict[str, Any]:
    """Takes some training steps with a storage counter; the data set and the evaluation do not count.

    The first steps make the optimizer's state and, in stage 3, the order of modules by which it prefetches; the
    peaks are those of the last one.
    """
    start_distributed()
    with PhaseMemory() as memory:
        trainer = Trainer(config)
        trainer.heldout = None  # type: ignore[assignment]
        engine = trainer.engine
        before_backward, before_step = engine.backward, engine.step
        batches = stream_batches(
            trainer.dataset,
            config,
            rank=trainer.rank,
            world_size=trainer.world_size,
            start=0,
            count=steps * config.training.gradient_accumulation_steps,
        )
        trainer.model.train()
        resting = 0
        for step in range(steps):
            if step == steps - 1:
                engine.backward, engine.step = (
                    memory.during("backward", before_backward),
                    memory.during("step", before_step),
                )
                trainer._micro_step = memory.during("forward", trainer._micro_step)
                memory.phases, memory._phase = {}, ""
                resting = memory.current
            trainer._optimizer_step(batches)
        memory.enter("")
    return {"resting": resting, "phases": memory.phases, "operators": memory.operators}


def main(configs: list[str]) -> None:
    """Measures one configuration after the other and writes each one's phases beside it."""
    for path in configs:
        measured = measure(load_config(TrainConfig, path), steps=3)
        Path(path).with_suffix(f".{torch.distributed.get_rank()}.json").write_text(json.dumps(measured))
