"""A small study of two variants, for the tests of ablations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from framer.ablation.plan import PlannedRun, plan_runs, read_table

TINY: dict[str, Any] = {
    "framer": {"weight": 0.1},
    "data": {"crop_size": 32, "workers": 0},
    "model": {"architecture": {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 8}},
    "optimizer": {"lr": 1e-3},
    "training": {"max_steps": 4, "batch_size": 4, "checkpoint_steps": 2},
    "trackers": {"tensorboard": False},
    "evaluation": {"crop_size": 64, "num_inference_steps": 1},
}


def write_study(folder: Path, **changes: Any) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump({**TINY, "output_dir": "runs/base"}))
    variants = {
        "none": {"title": "no FRAMER", "overrides": ["framer.enabled=false"]},
        "framer": {"title": "FRAMER"},
    }
    study = {"title": "A study", "base": "base.yaml", "variants": variants, **changes}
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder / "study.yaml"


def plan(file: Path, *, config: Path | None = None, overrides: tuple[str, ...] = (), only: tuple[str, ...] = (),
         seeds: tuple[int, ...] = (0,), output: Path = Path("out")) -> list[PlannedRun]:  # fmt: skip
    return plan_runs(read_table(file), file, output, config=config, overrides=overrides, only=only, seeds=seeds)
