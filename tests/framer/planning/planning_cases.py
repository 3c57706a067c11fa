"""A small configuration to be planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from framer.config.loading import build_config
from framer.config.training import TrainConfig

SMALL: dict[str, Any] = {
    "output_dir": "unused",
    "data": {"crop_size": 32},
    "model": {"architecture": {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 32}},
    "deepspeed": {"reduce_bucket_size": 100_000, "stage3_param_persistence_threshold": 0},
    "training": {"batch_size": 4},
    "evaluation": {"crop_size": 64},
}


def small_config(**sections: dict[str, Any]) -> TrainConfig:
    """`SMALL` with some sections' keys replaced."""
    content = {**SMALL, **{name: {**SMALL.get(name, {}), **section} for name, section in sections.items()}}
    return build_config(TrainConfig, content, source="test")


def write_small(folder: Path) -> Path:
    """`SMALL` as a file."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path
