"""What is measured at each step: a JSON line, TensorBoard, the progress bar."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from framer.errors import UserError
from framer.extras import require
from framer.files import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class LayerMetrics(TypedDict):
    """Means over the batch, one value a student layer."""

    names: list[str]
    intra: list[float]
    inter: list[float]
    weight_lf: list[float]
    weight_hf: list[float]
    align_lf: list[float]
    align_hf: list[float]


class TimeMetrics(TypedDict):
    """What differs from run to run, apart from what must not."""

    seconds: float
    images_per_second: float
    data_wait_fraction: float


class StepMetrics(TypedDict):
    """One line of ``metrics.jsonl``."""

    step: int
    loss: float
    noise_loss: float
    framer_loss: float | None
    gradient_norm: float
    learning_rate: float
    samples: int
    layers: LayerMetrics | None
    time: TimeMetrics


class MetricsLog:
    """Appends steps to ``metrics.jsonl`` and TensorBoard.

    Args:
        path: The JSON lines file. Lines after ``start_step`` are of steps that will be taken again: they go.
        tensorboard: Folder of the event files, or None.
        start_step: Optimizer steps already taken.
    """

    def __init__(self, path: Path, *, tensorboard: Path | None, start_step: int) -> None:
        _keep_until(path, start_step)
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        self._writer: SummaryWriter | None = None
        if tensorboard is not None:
            writer_class = require("torch.utils.tensorboard", extra="train").SummaryWriter
            self._writer = writer_class(str(tensorboard), purge_step=start_step + 1)

    def write(self, metrics: StepMetrics) -> None:
        """Appends one step."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in _scalars(metrics).items():
                self._writer.add_scalar(name, value, metrics["step"])

    def close(self) -> None:
        """Writes what is buffered."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def _keep_until(path: Path, last_step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a killed run
        if step <= last_step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def _scalars(metrics: StepMetrics) -> dict[str, float]:
    values: dict[str, Any] = {f"train/{k}": v for k, v in metrics.items() if k not in ("step", "layers", "time")}
    values |= {f"time/{k}": v for k, v in metrics["time"].items()}
    layers = metrics["layers"]
    if layers is not None:
        for i, name in enumerate(layers["names"]):
            values |= {f"framer_{k}/{name}": v[i] for k, v in layers.items() if k != "names"}  # type: ignore[index]
    return {k: float(v) for k, v in values.items() if v is not None and math.isfinite(v)}
