"""What a checkpoint says of its run, and whether the present run is the same one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.errors import ConfigError, UserError

STATE_FILE = "trainer_state.json"
PHOTOGRAPHS = "data.photographs_fingerprint"
"""Not known of runs that are older than it, which go on."""
# What a continued run may change; anything else would make it another run under the same name.
_CHANGEABLE = (
    "output_dir",
    "evaluation.",
    "health.",
    "data.evaluation",
    "data.workers",
    "training.max_steps",
    "training.checkpoint_",
    "training.checkpoints_kept",
    "training.sample_steps",
    "training.resume",
    "trackers.",
    "distributed.",
    "training.export_dtype",
    "model.lora.export",
    "training.activation_checkpointing",
)
# What another number of ranks may change too, as long as an optimizer step takes as many samples.
_CHANGEABLE_WITH_RANKS = ("training.batch_size", "training.gradient_accumulation_steps")


@dataclass(frozen=True)
class TrainerState:
    """What the trainer must know to go on, beside the engine's own state."""

    step: int
    """Optimizer steps taken."""
    micro_steps: int
    """Forward passes taken by each rank: the position in the training stream."""
    framer: dict[str, int]
    """State of the random-layer negatives."""
    world_size: int
    config: dict[str, Any]
    """The run's resolved configuration."""
    model: dict[str, Any]
    """The transformer's config, to recognise a checkpoint of another model."""
    model_class: str = "SD3Transformer2DModel"
    """Name of its class; the default is that of checkpoints from before there were others."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Counts of skipped steps."""

    @property
    def pass_samples(self) -> int:
        """Samples that all ranks together take in a forward pass."""
        return int(self.config["training"]["batch_size"]) * self.world_size

    @property
    def step_samples(self) -> int:
        """Samples that all ranks together take in an optimizer step."""
        return self.pass_samples * int(self.config["training"]["gradient_accumulation_steps"])


def read_state(checkpoint: Path) -> TrainerState:
    """Reads the trainer's state.

    Raises:
        UserError: The file is missing or damaged.
    """
    path = checkpoint / STATE_FILE
    try:
        return TrainerState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{STATE_FILE} in {checkpoint} is damaged: {reason}") from None


def check_same_run(checkpoint: Path, state: TrainerState, expected: TrainerState) -> None:
    """Compares a checkpoint's run with the present one.

    Args:
        checkpoint: For messages.
        state: What the checkpoint says.
        expected: The present run; step and position are ignored.

    Raises:
        UserError: The checkpoint is of another model, of other settings, or of ranks that take other samples a step.
    """
    if state.model_class != expected.model_class:
        raise UserError(f"{checkpoint} is of a {state.model_class}; this run's model is a {expected.model_class}")
    differing = [
        f"{key} {state.model.get(key)} (now {value})"
        for key, value in expected.model.items()
        if state.model.get(key) != value
    ]
    if differing:
        raise UserError(f"{checkpoint} is of another model: {', '.join(differing)}")
    changeable: tuple[str, ...] = _CHANGEABLE
    if state.world_size != expected.world_size:
        if state.step_samples != expected.step_samples:
            raise UserError(
                f"{checkpoint} was saved by {state.world_size} ranks, which took {state.step_samples} samples a step; "
                f"this run has {expected.world_size} and would take {expected.step_samples}. Set training.batch_size "
                f"and training.gradient_accumulation_steps so that they make {state.step_samples}, or start as many "
                "ranks"
            )
        if expected.config["data"]["buckets"] and state.pass_samples != expected.pass_samples:
            raise UserError(
                f"{checkpoint} was saved by ranks that together took {state.pass_samples} samples a forward pass; this "
                f"run's would take {expected.pass_samples}, and data.buckets would give it other samples. Set "
                f"training.batch_size so that it makes {state.pass_samples}, or start as many ranks"
            )
        changeable += _CHANGEABLE_WITH_RANKS
    before, now = _flat(with_new_settings(state.config)), _flat(expected.config)
    changed = [
        f"{key} {before.get(key)} (now {now.get(key)})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and not key.startswith(changeable)
        and not (key == PHOTOGRAPHS and before.get(key) is None)
    ]
    if changed:
        raise UserError(
            f"{checkpoint} is of a run with other settings: {', '.join(changed)}; choose another output_dir for a new "
            "run, or go on with the old settings"
        )


def with_new_settings(config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration with the defaults of settings that are younger than it."""
    try:
        return build_config(TrainConfig, config, source="of a checkpoint").model_dump(mode="json")
    except ConfigError:  # a setting has gone since; it will be named as one that differs
        return config


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
