"""``python -m benchmarks.soak``: thousands of training steps of a tiny model, and whether memory grows meanwhile.

FRAMER, the average of the weights, checkpoints, evaluations and data workers are all on, as in a long run. Resident
memory, Python's allocated blocks and live tensors are sampled every 20 steps after a warm-up of 200, which has the
first evaluations and checkpoints in it, and a line is fitted to each. Writes ``soak.json`` and ``soak.png``.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from scipy import stats

from benchmarks.machine import describe
from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.data.samples import Sample
from framer.plotting import LINE_COLOURS, new_canvas, save_canvas, style_axes
from framer.training.metrics import TrainingStep
from framer.training.trainer import Trainer

WARM_UP = 200
EVERY = 20


class Reading(NamedTuple):
    """What the process holds after a step."""

    step: int
    resident_bytes: int
    python_blocks: int
    tensors: int


class Slope(NamedTuple):
    """A fitted line's slope and half the width of its 95 % confidence interval, a step."""

    slope: float
    margin: float


class Watched(Trainer):
    """A trainer that notes what its process holds."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        # Not a list: its entries would be the growth that is looked for.
        self._noted = array("q")
        self._process = psutil.Process()

    @property
    def readings(self) -> list[Reading]:
        """What was noted so far."""
        noted = iter(self._noted)
        return [Reading(*values) for values in zip(noted, noted, noted, noted, strict=True)]

    def _optimizer_step(self, batches: Iterator[Sample]) -> TrainingStep:
        metrics = super()._optimizer_step(batches)
        if self.step >= WARM_UP and self.step % EVERY == 0:
            gc.collect()
            tensors = sum(issubclass(type(held), torch.Tensor) for held in gc.get_objects())
            resident = self._process.memory_info().rss
            self._noted.extend((self.step, resident, sys.getallocatedblocks(), tensors))
        return metrics


def tiny_config(folder: Path, steps: int, zero_stage: int) -> TrainConfig:
    """Four blocks of 16 channels on the bundled photographs."""
    sections: dict[str, Any] = {
        "output_dir": str(folder),
        "framer": {"weight": 0.1},
        "data": {"crop_size": 32, "workers": 1},
        "model": {"architecture": {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 8}},
        "optimizer": {"lr": 1e-3},
        "training": {
            "max_steps": steps,
            "batch_size": 4,
            "checkpoint_steps": 100,
            "sample_steps": 100,
            "ema": {"decay": 0.999},
        },
        "deepspeed": {"zero_stage": zero_stage, "stage3_param_persistence_threshold": 0},
        "evaluation": {"crop_size": 64, "num_inference_steps": 1},
    }
    return build_config(TrainConfig, sections, source="the soak test")


def fit(steps: list[int], values: list[int]) -> Slope:
    """Least squares; the interval takes the residuals for independent, so it is rather too narrow."""
    if len(set(values)) == 1:
        return Slope(0.0, 0.0)
    line = stats.linregress(steps, values)
    return Slope(line.slope, float(stats.t.ppf(0.975, len(steps) - 2)) * line.stderr)


QUANTITIES = {
    "resident_bytes": ("resident memory (MiB)", "bytes", 2**20),
    "python_blocks": ("Python's blocks (1000)", "blocks", 1000),
    "tensors": ("live tensors", "tensors", 1),
}


def draw(readings: list[Reading], slopes: dict[str, Slope], path: Path) -> None:
    """Writes the figure."""
    steps = np.array([reading.step for reading in readings])
    canvas = new_canvas(9.0, 7.6, "Memory over a long run")
    plots = canvas.subplots(len(QUANTITIES), 1, sharex=True)
    for axes, (name, (label, unit, scale)) in zip(plots, QUANTITIES.items(), strict=True):
        heights = np.array([getattr(reading, name) for reading in readings])
        fitted = heights.mean() + slopes[name].slope * (steps - steps.mean())
        axes.plot(steps, heights / scale, color=LINE_COLOURS[1], marker=".", linewidth=1.2)
        axes.plot(steps, fitted / scale, color=LINE_COLOURS[2], linestyle="--", linewidth=1.8)
        style_axes(axes, x_label="", y_label=label, title=f"slope {_said(slopes[name], unit)}")
        axes.ticklabel_format(axis="y", useOffset=False)
    plots[-1].set_xlabel("optimizer step", fontsize=11)
    save_canvas(canvas, path)


def _said(slope: Slope, unit: str) -> str:
    return f"{slope.slope:+.3g} ± {slope.margin:.3g} {unit} a step"


def slopes_of(readings: list[Reading]) -> dict[str, Slope]:
    """The slope of every quantity."""
    steps = [reading.step for reading in readings]
    return {name: fit(steps, [getattr(reading, name) for reading in readings]) for name in QUANTITIES}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="folder of soak.json and soak.png")
    arguments = parser.parse_args()
    if arguments.steps < WARM_UP + 3 * EVERY:
        parser.error(f"--steps {arguments.steps}: a line needs {WARM_UP + 3 * EVERY} steps or more")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Watched(tiny_config(Path(folder), arguments.steps, arguments.zero_stage))
        trainer.train()
    readings = trainer.readings
    slopes, settled = slopes_of(readings), slopes_of(readings[len(readings) // 2 :])
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(readings, slopes, arguments.output / "soak.png")
    result = {
        "machine": describe(),
        "steps": arguments.steps,
        "zero_stage": arguments.zero_stage,
        "slopes": {name: slope._asdict() for name, slope in slopes.items()},
        "slopes_in_the_second_half": {name: slope._asdict() for name, slope in settled.items()},
        "readings": [reading._asdict() for reading in readings],
    }
    (arguments.output / "soak.json").write_text(json.dumps(result, indent=2))
    for name, (_, unit, _) in QUANTITIES.items():
        print(f"{name}: {_said(slopes[name], unit)}; in the second half {_said(settled[name], unit)}")


if __name__ == "__main__":
    main()
