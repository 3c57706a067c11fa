"""Looking at pictures and measuring them, several at a time, with the same result whatever the number of workers."""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from framer.data.images import ImageError, read_image
from framer.errors import UserError
from framer.evaluation.protocols import BuiltIn, Picture, choose_metrics
from framer.evaluation.runs import PictureFile, Run
from framer.extras import require
from framer.files import file_sha256

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_WORTH_A_WORKER = 32
"""Pictures below which starting another process takes longer than it saves."""


class Workers:
    """Applies functions to many items in processes, or in this one; results come in the order of the items."""

    def __init__(self, pool: ProcessPoolExecutor | None) -> None:
        self._pool = pool

    def map(
        self, function: Callable[[_Item], _Result], items: Sequence[_Item], *, doing: str, unit: str
    ) -> list[_Result]:
        """Applies ``function`` to every item and shows progress, rate and time left on standard error.

        Raises:
            UserError: A process was ended from outside.
        """
        results: Iterable[_Result] = map(function, items)
        if self._pool is not None:
            results = self._pool.map(function, items)
        progress = require("tqdm", extra="train").tqdm(results, total=len(items), desc=doing, unit=unit)
        try:
            return list(progress)
        except BrokenProcessPool as error:
            progress.close()
            raise UserError(
                f"{doing}: a process was ended before its pictures were done, most often for lack of memory; use fewer "
                "--workers"
            ) from error


@contextmanager
def start_workers(requested: int | None, *, pictures: int) -> Iterator[Workers]:
    """Starts the processes that pictures are measured in.

    Args:
        requested: Number of processes; 0 for none beside this one; by default one a processor core, but none for few
            pictures.
        pictures: Number of pictures that there are to measure.

    Yields:
        The workers, which end with the context.
    """
    count = min(len(os.sched_getaffinity(0)), pictures // _WORTH_A_WORKER) if requested is None else requested
    if count < 1 or (requested is None and count == 1):
        yield Workers(None)
        return
    # A fork would copy torch's threads in whatever state they are.
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield Workers(pool)
    finally:
        pool.shutdown(cancel_futures=True)


class Inspected(NamedTuple):
    """What there is to know about a file before it is measured.

    Attributes:
        height: In pixels, as the file is.
        width: In pixels.
        sha256: Of the file's bytes.
        problem: Why it cannot be read; empty where it can.
    """

    height: int
    width: int
    sha256: str
    problem: str


def inspect(file: PictureFile) -> Inspected:
    """Decodes a file to the end, for a damaged one may look whole at its beginning."""
    try:
        height, width = read_image(file.path).shape[:2]
        return Inspected(height, width, file_sha256(file.path), "")
    except ImageError as error:
        return Inspected(0, 0, "", str(error))


def inspect_all(workers: Workers, runs: Sequence[Run], names: Sequence[str]) -> dict[str, list[Inspected]]:
    """Inspects every picture of every run, before any is measured.

    Returns:
        By run, in the order of ``names``.

    Raises:
        UserError: Files cannot be read; all of them are named.
    """
    files = [run.pictures[name] for run in runs for name in names]
    inspected = workers.map(inspect, files, doing="check", unit="picture")
    damaged = [picture.problem for picture in inspected if picture.problem]
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(files)} pictures cannot be read; nothing was measured:\n  " + "\n  ".join(damaged)
        )
    return {run.name: inspected[i * len(names) : (i + 1) * len(names)] for i, run in enumerate(runs)}


class Task(NamedTuple):
    """One picture to measure.

    Attributes:
        picture: The picture.
        reference: Its original, where there is one.
        protocol: Whose metrics.
        metrics: Names of the protocol's built-in metrics.
        border: Pixels of each side that are cut off first.
    """

    picture: PictureFile
    reference: PictureFile | None
    protocol: str
    metrics: tuple[str, ...]
    border: int


def read_pair(task: Task) -> tuple[Picture, ...]:
    """The picture and, where there is one, its original, without the border."""
    files = (task.picture,) if task.reference is None else (task.picture, task.reference)
    return tuple(cut_border(file.read(), task.border) for file in files)


def cut_border(picture: Picture, border: int) -> Picture:
    """The picture without ``border`` pixels of each side."""
    height, width = picture.shape[:2]
    return picture[border : height - border, border : width - border]


def measure(task: Task) -> list[float]:
    """Values of the task's metrics, in the protocol's order; NaN where a metric is not defined for the picture."""
    pair = read_pair(task)
    values = []
    for metric in choose_metrics(task.protocol, task.metrics):
        assert isinstance(metric, BuiltIn)
        values.append(metric.measure(*pair) if metric.needs_reference else metric.measure(pair[0]))
    return values


def encode_png(picture: Picture) -> bytes:
    """The picture as a PNG file."""
    png = io.BytesIO()
    image: Any = require("PIL.Image", extra="train").fromarray(picture)
    image.save(png, format="PNG", compress_level=1)
    return png.getvalue()
