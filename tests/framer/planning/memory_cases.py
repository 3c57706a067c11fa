"""Small training runs whose memory is planned and measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.planning.activations import trace_micro_step
from framer.planning.memory import predict_memory
from tests.framer.training.training_runs import run_on_ranks, tiny_config

# 6 blocks of width 256, 13.8 million parameters: neither states nor activations are negligible.
ARCHITECTURE = {
    "num_layers": 6,
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 128,
}
# Small beside the model, so that its own sizes show, and everything in stage 3 is partitioned.
BUCKETS = {
    "reduce_bucket_size": 1_000_000,
    "allgather_bucket_size": 1_000_000,
    "stage3_prefetch_bucket_size": 1_000_000,
    "stage3_param_persistence_threshold": 0,
}
_MEASURE = """
import sys
from tests.framer.planning.measuring import main
main(sys.argv[1:])
"""


class Case(NamedTuple):
    """A run: sections of its configuration over those above."""

    name: str
    sections: dict[str, dict[str, Any]]


class Comparison(NamedTuple):
    """Peaks of one rank, in bytes."""

    name: str
    rank: int
    planned: dict[str, int]
    measured: dict[str, int]

    @property
    def error(self) -> float:
        """Of the planned peak, relative to the measured one."""
        return max(self.planned.values()) / max(self.measured.values()) - 1


def case(
    name: str, *, stage: int, precision: str, training: dict[str, Any] | None = None, **sections: dict[str, Any]
) -> Case:
    """A case of a ZeRO stage and a precision."""
    return Case(
        name,
        {
            "data": {"crop_size": 32, "workers": 0},
            "training": {
                "max_steps": 4,
                "batch_size": 4,
                "checkpoint_steps": 100,
                "precision": precision,
                **(training or {}),
            },
            "trackers": {"tensorboard": False},
            **{key: value for key, value in sections.items() if key not in ("deepspeed", "model")},
            "model": {"architecture": ARCHITECTURE, **sections.get("model", {})},
            "deepspeed": {**BUCKETS, "zero_stage": stage, **sections.get("deepspeed", {})},
        },
    )


def compare(folder: Path, cases: list[Case], *, world_size: int, timeout: float) -> list[Comparison]:
    """Trains every case for some steps on real ranks, one after the other, and plans it.

    Cases of stage 3 come last: DeepSpeed changes linear layers of the whole process for them.
    """
    cases = sorted(cases, key=lambda each: each.sections["deepspeed"]["zero_stage"])
    configs = [tiny_config(folder / str(i), **each.sections) for i, each in enumerate(cases)]
    outcome = run_on_ranks(world_size, _MEASURE, configs, timeout=timeout)
    assert all(status == 0 for status, _ in outcome), "\n".join(errors[-3000:] for _, errors in outcome)
    comparisons = []
    for each, path in zip(cases, configs, strict=True):
        config = load_config(TrainConfig, path)
        step = trace_micro_step(config, partitioned=config.deepspeed.zero_stage == 3)
        for rank in range(world_size):
            plan = predict_memory(step, config, world_size=world_size, rank=rank, foreach=False, workspace=False)
            # On a CPU device and host are one.
            phases = {
                phase: peak.bytes + (plan.host[phase].bytes if phase in plan.host else 0)
                for phase, peak in plan.device.items()
            }
            measured = json.loads(path.with_suffix(f".{rank}.json").read_text())["phases"]
            comparisons.append(Comparison(each.name, rank, phases, measured))
    return comparisons
