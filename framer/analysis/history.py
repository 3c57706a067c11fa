"""Reads what a run wrote to ``metrics.jsonl``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from framer.errors import UserError

logger = logging.getLogger(__name__)


class LayerMetrics(BaseModel):
    """FRAMER's diagnostics of one step: N numbers each, the means over the batch, first layer first.

    Attributes:
        names: The layers' names.
        weight_lf: FAW weight ``w_LF`` in (0, 1].
        weight_hf: FAW weight ``w_HF``.
        align_lf: FAM weight ``a_LF`` in [0, 1].
        align_hf: FAM weight ``a_HF``.
        intra: The low band's loss: IntraCL, unless ``framer.assignment`` says otherwise.
        inter: The high band's loss: InterCL, unless ``framer.assignment`` says otherwise.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    names: list[str]
    weight_lf: list[float]
    weight_hf: list[float]
    align_lf: list[float]
    align_hf: list[float]
    intra: list[float]
    inter: list[float]

    @model_validator(mode="after")
    def _equally_long(self) -> LayerMetrics:
        lengths = {name: len(getattr(self, name)) for name in type(self).model_fields}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"all lists must be as long as there are layers, got {lengths}")
        return self


class AlignmentMetrics(BaseModel):
    """Another alignment loss than FRAMER's in one step.

    Attributes:
        method: Its name, as in ``framer.method``.
        names: The students' names.
        loss: Each student's loss, the mean over the batch, before the reduction over layers and the weight.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    method: str
    names: list[str]
    loss: list[float]


class StepMetrics(BaseModel):
    """One line of ``metrics.jsonl``; fields that no plot needs are ignored.

    Attributes:
        step: Optimizer step, counted from 1.
        loss: The loss that was minimised; None where the step was skipped because it was not finite.
        noise_loss: Its noise-prediction (flow-matching) part.
        framer_loss: The part of FRAMER or of another alignment loss, weighted as it enters ``loss``; None without one.
        layers: FRAMER's per-layer diagnostics; None when FRAMER is off.
        alignment: The layers' losses of another method; None with FRAMER, and in runs older than them.
        skipped: Whether the step was skipped; its losses and diagnostics are None.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    step: Annotated[int, Field(ge=0)]
    loss: float | None
    noise_loss: float | None
    framer_loss: float | None
    layers: LayerMetrics | None
    alignment: AlignmentMetrics | None = None
    skipped: bool = False


def read_metrics(path: Path) -> list[StepMetrics]:
    """Reads a run's metrics in the order of steps, each step once.

    A run that was killed may leave half a line at the end: it is left out with a logged warning. A run that
    resumed from a checkpoint went back to an earlier step: what was recorded before from that step on is left
    out.

    Args:
        path: ``metrics.jsonl`` of a run folder, one JSON object a line.

    Returns:
        One record a step; empty for an empty file.

    Raises:
        UserError: The file is missing, or a line other than a half-written last one is not such an object
            (names the line).
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot read the metrics: {error.strerror}") from error
    *whole_lines, unfinished = text.split("\n")
    records: list[StepMetrics] = []
    for number, line in enumerate(whole_lines, start=1):
        if line.strip():
            _append(records, _parse(line, f"{path}, line {number}"))
    if unfinished.strip():
        try:
            _append(records, _parse(unfinished, f"{path}, line {len(whole_lines) + 1}"))
        except UserError:
            logger.warning("%s: left out the last line, which was cut short when the run was stopped", path)
    return records


def _parse(line: str, place: str) -> StepMetrics:
    try:
        return StepMetrics.model_validate(json.loads(line))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise UserError(f"{place}: not a metrics record: {problems}") from error
    except ValueError as error:
        raise UserError(
            f"{place}: not a JSON object ({error}); delete the damaged line, or train the run again"
        ) from error


def _append(records: list[StepMetrics], record: StepMetrics) -> None:
    while records and records[-1].step >= record.step:
        records.pop()
    records.append(record)
