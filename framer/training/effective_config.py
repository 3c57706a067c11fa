"""What DeepSpeed made of its configuration, its own defaults included."""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from framer.extras import require

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def effective_config(engine: DeepSpeedEngine) -> str:
    """The engine's settings as JSON text: DeepSpeed's version, what it was given, and what it resolved that to.

    Its defaults change between releases: a run is known by the resolved values.
    """
    resolved = {name: value for name, value in vars(engine._config).items() if not name.startswith("_")}
    content = {
        "deepspeed_version": require("deepspeed", extra="train").__version__,
        "given": engine.config,
        "resolved": dict(sorted(resolved.items())),
    }
    return json.dumps(content, indent=2, default=_plain) + "\n"


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Enum):
        return value.value
    return vars(value) if hasattr(value, "__dict__") else str(value)
