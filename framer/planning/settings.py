"""Ways to spread one run over memory: what of its configuration they change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.errors import ConfigError

RECOMPUTED: Final = (0, 4, 2, 1)
"""Every how many blocks one is recomputed, from none to all."""
STAGES: Final = (0, 1, 2, 3)


@dataclass(frozen=True)
class Setting:
    """A ZeRO stage, which blocks are recomputed, and what is offloaded.

    Attributes:
        stage: ZeRO stage.
        every: Every how many blocks one is recomputed; 0 for none.
        offload_optimizer: Whether optimizer state and master weights are in the host's memory.
        offload_param: Whether partitioned parameters are.
    """

    stage: int
    every: int = 0
    offload_optimizer: bool = False
    offload_param: bool = False

    @property
    def label(self) -> str:
        """A few words."""
        parts = [f"stage {self.stage}", _recomputation(self.every)]
        if self.offload_optimizer:
            parts.append("optimizer and parameters on host" if self.offload_param else "optimizer on host")
        return ", ".join(parts)

    def overrides(self, config: TrainConfig) -> list[str]:
        """What to add to the command line of a run with this configuration."""
        switch = {0: "false", 1: "true"}.get(self.every, f"{{backend: torch, every: {self.every}}}")
        found = [f"deepspeed.zero_stage={self.stage}", f"training.activation_checkpointing={switch}"]
        for key, chosen in (("offload_optimizer", self.offload_optimizer), ("offload_param", self.offload_param)):
            if chosen or getattr(config.deepspeed, key) is not None:
                found.append(f"deepspeed.{key}={'cpu' if chosen else 'null'}")
        return found

    def allowed(self, config: TrainConfig) -> bool:
        """Whether the configuration takes this setting: half precision, for one, needs stage 2 or 3."""
        try:
            self.apply(config)
        except ConfigError:
            return False
        return True

    def apply(self, config: TrainConfig) -> TrainConfig:
        """The configuration with this setting.

        Raises:
            ConfigError: They do not go together.
        """
        content = config.model_dump()
        content["deepspeed"] |= {
            "zero_stage": self.stage,
            "offload_optimizer": "cpu" if self.offload_optimizer else None,
            "offload_param": "cpu" if self.offload_param else None,
        }
        content["training"]["activation_checkpointing"] = (
            {"backend": "torch", "every": self.every} if self.every else False
        )
        return build_config(TrainConfig, content, source="of the plan")


def with_batch_size(config: TrainConfig, batch_size: int) -> TrainConfig:
    """The configuration with another batch size of a rank."""
    return config.model_copy(update={"training": config.training.model_copy(update={"batch_size": batch_size})})


def shown_settings(config: TrainConfig) -> list[Setting]:
    """What the table compares: every stage, without recomputation and with all blocks recomputed."""
    settings = [Setting(stage, every) for every in (0, 1) for stage in STAGES]
    return [setting for setting in settings if setting.allowed(config)]


def settings_by_cost(config: TrainConfig) -> list[Setting]:
    """All settings that the configuration takes, those that cost least time first.

    Stages 0 to 2 send the same gradients; recomputation costs up to a third of the operations; stage 3 gathers
    parameters two or three times a micro-step; offloading moves gradients and weights over the bus and updates them on
    the CPU.
    """
    settings = [Setting(stage, every) for every in RECOMPUTED for stage in (0, 1, 2)]
    settings += [Setting(3, every) for every in RECOMPUTED]
    settings += [Setting(stage, every, offload_optimizer=True) for stage in (2, 3) for every in RECOMPUTED]
    settings.append(Setting(3, 1, offload_optimizer=True, offload_param=True))
    return [setting for setting in settings if setting.allowed(config)]


def _recomputation(every: int) -> str:
    if every == 0:
        return "no recomputation"
    return "all blocks recomputed" if every == 1 else f"1 block in {every} recomputed"
