"""What is measured at each step: a JSON line, and what the trackers show."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from framer.analysis.history import StepMetrics
from framer.files import write_text, writing
from framer.training.hardware import MemoryUse
from framer.training.trackers import Tracker


class StepTime(BaseModel):
    """What differs from run to run, apart from what must not.

    Attributes:
        seconds: Wall time of the step.
        images_per_second: Samples of all ranks over that time.
        data_wait_fraction: Part of the time that the step waited for its batch.
        tflops_per_rank: 1e12 floating-point operations of the model that a rank does a second:
            ``model_flops_per_sample * images_per_second / ranks / 1e12``. The model's are those of one forward and
            backward pass, without what checkpointing computes again and without the loss.
        mfu: Model FLOPs utilisation, ``tflops_per_rank`` over the device's peak in the run's precision; None where that
            is not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float
    images_per_second: float
    data_wait_fraction: float
    tflops_per_rank: float | None = None
    mfu: float | None = None

    @classmethod
    def of(
        cls, *, seconds: float, waited: float, images: int, ranks: int, sample_flops: float | None, peak: float | None
    ) -> StepTime:
        """Figures of one step.

        Args:
            seconds: Wall time.
            waited: Of that, waiting for data.
            images: Samples of all ranks.
            ranks: Number of ranks.
            sample_flops: Floating-point operations of the model for one sample, forward and backward.
            peak: Those that a rank's device can do a second; None where it is not known.
        """
        flops = None if sample_flops is None else sample_flops * images / ranks / seconds
        return cls(
            seconds=seconds,
            images_per_second=images / seconds,
            data_wait_fraction=waited / seconds,
            tflops_per_rank=None if flops is None else flops / 1e12,
            mfu=None if flops is None or peak is None else flops / peak,
        )


class TrainingStep(StepMetrics):
    """One line of ``metrics.jsonl``: what the plots read, and what one watches a run by.

    Attributes:
        gradient_norm: Global norm before clipping; not finite, null in JSON, where the step was skipped.
        learning_rate: Learning rate of the step.
        samples: Samples seen by all ranks so far.
        skip_reason: Why the step was skipped, and where its numbers stopped being finite; None where it was taken.
        skipped_steps: Steps skipped so far, those of the loss scale apart.
        overflow_steps: Steps skipped so far to lower the loss scale of fp16.
        time: Timings.
        memory: Memory of rank 0.
    """

    gradient_norm: float | None
    learning_rate: float
    samples: int
    skip_reason: str | None = None
    skipped_steps: int = 0
    overflow_steps: int = 0
    time: StepTime
    memory: MemoryUse | None = None


class MetricsLog:
    """Appends steps to ``metrics.jsonl`` and hands them to the trackers, which it closes with itself.

    Args:
        path: The JSON lines file. Lines after ``start_step`` are of steps that will be taken again: they go.
        trackers: What else shows the run.
        start_step: Optimizer steps already taken.

    Raises:
        UserError: The file cannot be read or written.
    """

    def __init__(self, path: Path, *, trackers: Sequence[Tracker] = (), start_step: int) -> None:
        self._path = path
        self._trackers = trackers
        with writing(path):
            _keep_until(path, start_step)
            self._file = path.open("a", encoding="utf-8")

    def write(self, metrics: TrainingStep) -> None:
        """Appends one step.

        Raises:
            UserError: The file cannot be written to, as on a full disk.
        """
        with writing(self._path):
            self._file.write(metrics.model_dump_json() + "\n")
            self._file.flush()
            for tracker in self._trackers:
                tracker.log_scalars(_scalars(metrics), metrics.step)

    def write_image(self, name: str, path: Path, *, step: int) -> None:
        """Hands a picture file to the trackers.

        Raises:
            UserError: As :meth:`write`.
        """
        with writing(self._path.parent):
            for tracker in self._trackers:
                tracker.log_image(name, path, step)

    def sync(self) -> None:
        """Makes what was written durable, so that no checkpoint outlives the lines before it.

        Raises:
            UserError: As :meth:`write`.
        """
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Writes what is buffered.

        Raises:
            UserError: As :meth:`write`.
        """
        with writing(self._path), ExitStack() as closing:
            for tracker in self._trackers:
                closing.callback(tracker.close)
            closing.callback(self._file.close)


def last_step(path: Path) -> int:
    """The last step that a ``metrics.jsonl`` holds, 0 if none."""
    if not path.is_file():
        return 0
    return max((step for step, _ in _lines(path)), default=0)


def _keep_until(path: Path, last_step: int) -> None:
    if path.is_file():
        write_text(path, "".join(line + "\n" for step, line in _lines(path) if step <= last_step))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield int(json.loads(line)["step"]), line
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a killed run


def _scalars(metrics: TrainingStep) -> dict[str, float]:
    values = metrics.model_dump(
        exclude={"step", "layers", "alignment", "time", "memory", "skipped", "skip_reason"}, exclude_none=True
    )
    scalars = {f"train/{key}": float(value) for key, value in values.items()}
    scalars |= {f"time/{key}": float(value) for key, value in metrics.time.model_dump(exclude_none=True).items()}
    if metrics.memory is not None:
        memory = metrics.memory.model_dump(exclude_none=True)
        scalars |= {f"memory/{key}": float(value) for key, value in memory.items()}
    if metrics.layers is not None:
        layers = metrics.layers.model_dump()
        for i, name in enumerate(layers.pop("names")):
            scalars |= {f"framer_{key}/{name}": float(value[i]) for key, value in layers.items()}
    if metrics.alignment is not None:
        method, names, losses = metrics.alignment.method, metrics.alignment.names, metrics.alignment.loss
        scalars |= {f"{method}_loss/{name}": loss for name, loss in zip(names, losses, strict=True)}
    return scalars
