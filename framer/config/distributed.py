"""How ranks find each other, and how long they wait."""

from __future__ import annotations

from framer.config.base import ConfigSection
from framer.config.types import PositiveInt


class DistributedConfig(ConfigSection):
    """Waiting for other ranks."""

    rendezvous_seconds: PositiveInt = 300
    """How long a rank waits at the start for the others to arrive."""
    timeout_seconds: PositiveInt = 1800
    """How long a collective operation waits for a rank before the run fails."""
