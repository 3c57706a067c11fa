"""Measures folders of pictures by a protocol: everything between the command line and the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import framer
from framer.errors import UserError
from framer.evaluation.learned import LearnedScorer, NotAvailableError, too_few_for_sets
from framer.evaluation.protocols import BuiltIn, Learned, Metric, choose_metrics, metric_id
from framer.evaluation.runs import BICUBIC, PictureFile, Run, check_names, open_run
from framer.evaluation.scoring import Inspected, Task, Workers, inspect_all, measure, start_workers
from framer.extras import require

REFERENCE = "reference"
"""What messages and tables call the originals."""
_LR = "LR"


class Size(NamedTuple):
    """Of a picture, in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height} x {self.width}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure.

    Attributes:
        runs: Names and folders of what is judged, in the order of the tables.
        reference: The originals' folder.
        lr: The folder of the LR images, whose bicubic enlargement becomes another run.
        protocol: A key of :data:`framer.evaluation.protocols.PROTOCOLS`.
        metrics: Some of the protocol's metrics; None for all.
        border: Pixels of each side that are cut off every picture first.
        workers: Processes; see :func:`framer.evaluation.scoring.start_workers`.
        device: Where learned metrics are computed.
        download: Whether their weights may be fetched.
    """

    runs: tuple[tuple[str, Path], ...]
    reference: Path | None = None
    lr: Path | None = None
    protocol: str = "framer"
    metrics: tuple[str, ...] | None = None
    border: int = 0
    workers: int | None = None
    device: str = "cpu"
    download: bool = False


@dataclass(frozen=True)
class Measured:
    """A metric's values.

    Attributes:
        metric: Which one.
        id: What exactly was computed, border included.
        library: What computed it, with the version.
        values: By run: ``[n]``, one a picture in the order of the names, NaN where not defined; ``[1]`` for a metric of
            sets.
        weights: SHA-256 of the weights' files by their name.
    """

    metric: Metric
    id: str
    library: str
    values: dict[str, NDArray[np.float64]]
    weights: dict[str, str] = field(default_factory=dict)

    @property
    def of_sets(self) -> bool:
        """Whether there is one value a run and none a picture."""
        return isinstance(self.metric, Learned) and self.metric.of_sets


@dataclass(frozen=True)
class NotComputed:
    """A metric of the protocol without values, and why."""

    metric: Metric
    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that was measured.

    Attributes:
        settings: What was asked for.
        names: The photographs, in sorted order.
        runs: The runs, the bicubic one included.
        reference: The originals, where there are some.
        sizes: Of each photograph.
        files: What the files were, by run (and ``reference``, ``LR``).
        results: The protocol's metrics, in its order.
    """

    settings: Settings
    names: list[str]
    runs: list[Run]
    reference: Run | None
    sizes: list[Size]
    files: dict[str, dict[str, Inspected]]
    results: list[Measured | NotComputed]


def evaluate_folders(settings: Settings) -> Evaluation:
    """Checks all folders and pictures, then measures them.

    Raises:
        UserError: Folders do not hold the same photographs, pictures cannot be read, or their sizes do not fit; each
            message names everything that it is about, and nothing is measured.
    """
    metrics = choose_metrics(settings.protocol, settings.metrics)
    _check_run_names(settings)
    runs = [open_run(name, folder) for name, folder in settings.runs]
    reference = None if settings.reference is None else open_run(REFERENCE, settings.reference)
    lr = None if settings.lr is None else open_run(_LR, settings.lr)
    folders = [*([] if reference is None else [reference]), *runs, *([] if lr is None else [lr])]
    names = check_names(folders)
    with start_workers(settings.workers, pictures=len(names) * len(folders)) as workers:
        inspected = inspect_all(workers, folders, names)
        sizes = _common_sizes([run for run in folders if run is not lr], inspected, names)
        if lr is not None:
            runs = [_bicubic(lr, inspected[_LR], sizes, names), *runs]
        _check_border(settings.border, sizes, names)
        results = _measure(workers, settings, metrics, runs, reference, names, sizes)
    return Evaluation(
        settings=settings,
        names=names,
        runs=runs,
        reference=reference,
        sizes=sizes,
        files={run.name: dict(zip(names, inspected[run.name], strict=True)) for run in folders},
        results=results,
    )


def _check_run_names(settings: Settings) -> None:
    names = [name for name, _ in settings.runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"more than one run is called {', '.join(twice)}; name them apart with --name NAME=FOLDER")
    reserved = [name for name in names if name in (REFERENCE, _LR) or (name == BICUBIC and settings.lr is not None)]
    if reserved:
        raise UserError(
            f"a run cannot be called {reserved[0]}, which means another folder here; give --name NAME=FOLDER"
        )


def _common_sizes(folders: Sequence[Run], inspected: dict[str, list[Inspected]], names: Sequence[str]) -> list[Size]:
    sizes, problems = [], []
    for index, name in enumerate(names):
        found = {run.name: Size(*inspected[run.name][index][:2]) for run in folders}
        sizes.append(found[folders[0].name])
        if len(set(found.values())) > 1:
            problems.append(f"{name}: " + ", ".join(f"{run} {size}" for run, size in found.items()))
    if problems:
        raise UserError(
            f"the pictures of a photograph must have the same size (height x width); {len(problems)} of {len(names)} "
            "differ:\n  " + "\n  ".join(problems)
        )
    return sizes


def _bicubic(lr: Run, inspected: Sequence[Inspected], sizes: Sequence[Size], names: Sequence[str]) -> Run:
    pictures, problems = {}, []
    for name, small, size in zip(names, inspected, sizes, strict=True):
        scale = size.height // small.height
        if (scale * small.height, scale * small.width) != size or scale < 1:
            problems.append(f"{name}: LR {Size(small.height, small.width)}, picture {size}")
        pictures[name] = PictureFile(lr.pictures[name].path, size)
    if problems:
        raise UserError(
            f"--lr {lr.folder}: pictures must be a whole multiple of their LR image, the same on both sides; "
            f"{len(problems)} are not:\n  " + "\n  ".join(problems)
        )
    return Run(BICUBIC, lr.folder, pictures)


def _check_border(border: int, sizes: Sequence[Size], names: Sequence[str]) -> None:
    gone = [f"{name} ({size})" for name, size in zip(names, sizes, strict=True) if min(size) <= 2 * border]
    if gone:
        raise UserError(f"--border {border} leaves nothing of {', '.join(gone)}")


def _measure(
    workers: Workers,
    settings: Settings,
    metrics: Sequence[Metric],
    runs: Sequence[Run],
    reference: Run | None,
    names: Sequence[str],
    sizes: Sequence[Size],
) -> list[Measured | NotComputed]:
    results: dict[str, Measured | NotComputed] = {}
    wanted: list[Metric] = []
    for metric in metrics:
        reason = _why_not(metric, settings.border, reference, names, sizes)
        if reason:
            results[metric.name] = NotComputed(metric, metric_id(metric, border=settings.border), reason)
        else:
            wanted.append(metric)

    built_in = [metric for metric in wanted if isinstance(metric, BuiltIn)]
    tasks = [
        Task(
            run.pictures[name],
            None if reference is None else reference.pictures[name],
            settings.protocol,
            tuple(metric.name for metric in built_in),
            settings.border,
        )
        for run in runs
        for name in names
    ]
    if built_in:
        doing = ", ".join(metric.name for metric in built_in)
        table = np.array(workers.map(measure, tasks, doing=doing, unit="picture"), dtype=np.float64)
        for metric, column in zip(built_in, table.T, strict=True):
            results[metric.name] = Measured(
                metric, metric_id(metric, border=settings.border), library_version(metric), _by_run(column, runs)
            )
    for metric in wanted:
        if isinstance(metric, Learned):
            results[metric.name] = _measure_learned(metric, settings, tasks, runs, names)
    return [results[metric.name] for metric in metrics]


def _why_not(metric: Metric, border: int, reference: Run | None, names: Sequence[str], sizes: Sequence[Size]) -> str:
    if metric.needs_reference and reference is None:
        return "it compares with the originals; give their folder as --reference"
    if isinstance(metric, BuiltIn):
        for name, size in zip(names, sizes, strict=True):
            too_small = metric.too_small(size.height - 2 * border, size.width - 2 * border)
            if too_small:
                return f"{name} ({size}) is too small: {too_small}; leave the picture out to have the others' mean"
    if isinstance(metric, Learned):
        return too_few_for_sets(metric, len(names))
    return ""


def _measure_learned(
    metric: Learned, settings: Settings, tasks: Sequence[Task], runs: Sequence[Run], names: Sequence[str]
) -> Measured | NotComputed:
    described = metric_id(metric, border=settings.border)
    try:
        scorer = LearnedScorer(metric, device=torch.device(settings.device), download=settings.download)
    except NotAvailableError as error:
        return NotComputed(metric, described, str(error))
    sets = [(run.name, tasks[i * len(names) : (i + 1) * len(names)]) for i, run in enumerate(runs)]
    steps: list[tuple[str, Callable[[], float]]] = (
        [(f"the folder of {run}", partial(scorer.measure_sets, part)) for run, part in sets]
        if metric.of_sets
        else [(str(task.picture.path), partial(scorer.measure, task)) for task in tasks]
    )
    values = []
    progress = require("tqdm", extra="train").tqdm(
        steps, desc=metric.name, unit="folder" if metric.of_sets else "picture"
    )
    for what, score in progress:
        # Whatever a library's networks refuse, such as a small picture: the other metrics are not lost with it.
        try:
            values.append(score())
        except Exception as error:
            progress.close()
            return NotComputed(metric, described, f"it failed on {what} ({type(error).__name__}: {error})")
    return Measured(metric, described, scorer.library, _by_run(np.array(values), runs), scorer.weights)


def _by_run(values: NDArray[np.float64], runs: Sequence[Run]) -> dict[str, NDArray[np.float64]]:
    return dict(zip((run.name for run in runs), np.split(values, len(runs)), strict=True))


def library_version(metric: Metric) -> str:
    """What computes a metric, with the version."""
    if not metric.library:
        return f"framer-diffusion {framer.__version__}"
    try:
        return f"{metric.library} {version(metric.library)}"
    except PackageNotFoundError:  # it has come without the metadata of a distribution
        return f"{metric.library}, version unknown"
