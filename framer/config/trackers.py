"""Where a run can be watched, beside its own ``metrics.jsonl``."""

from __future__ import annotations

from typing import Literal

from framer.config.base import ConfigSection
from framer.config.types import NonEmptyText


class WandbConfig(ConfigSection):
    """Weights & Biases."""

    project: NonEmptyText = "framer"
    """Project that the run belongs to."""
    name: NonEmptyText | None = None
    """Name of the run; null: that of its folder."""
    entity: NonEmptyText | None = None
    """User or team; null: the default of who is logged in."""
    mode: Literal["offline", "online"] = "offline"
    """``offline`` writes to ``output_dir/wandb`` alone, for ``wandb sync``; ``online`` also sends it to the server."""


class TrackersConfig(ConfigSection):
    """Programs that show the run's numbers, sample sheets and configuration."""

    tensorboard: bool = True
    """Write TensorBoard event files to ``output_dir/tensorboard``."""
    wandb: WandbConfig | None = None
    """Log to Weights & Biases: a section, or null."""
