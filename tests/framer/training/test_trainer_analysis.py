"""A run of the trainer's own, analysed at each of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_runs import tiny_config

from framer.cli import main
from framer.training.command import main as train


@pytest.mark.slow
@pytest.mark.parametrize("average", [None, 0.5])
def test_a_run_is_analysed_at_every_kept_checkpoint(tmp_path: Path, average: float | None) -> None:
    steps = {"max_steps": 6, "checkpoint_steps": 2, "checkpoint_keep_every": 2, "ema": {"decay": average}}
    assert train(["--config", str(tiny_config(tmp_path, training=steps))]) == 0
    run, out = tmp_path / "run", tmp_path / "out"
    arguments = ["--timesteps", "300", "--max-tiles", "4", "--only", "fig3,fig8,fig9"]
    assert main(["analyze", str(run), "--every-step", "-o", str(out), *arguments]) == 0
    numbers = json.loads((out / "fig8.json").read_text())
    assert list(numbers["measured"]["run"]) == ["2", "4", "6"]
    assert numbers["logged"]["run"]["steps"] == [1, 2, 3, 4, 5, 6]
    at_last = json.loads((out / "fig3.json").read_text())["run, step 6"]["300"]["lf"]
    # The last checkpoint holds what the export does, the average too.
    last = run / "checkpoints" / "step-00000006"
    assert main(["analyze", str(last), "-o", str(tmp_path / "last"), *arguments]) == 0
    again = json.loads((tmp_path / "last" / "fig3.json").read_text())["run, step 6"]["300"]["lf"]
    assert again == pytest.approx(at_last, abs=1e-6)
