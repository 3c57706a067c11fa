"""Which models are analysed: exports, runs and their checkpoints, found and named before any work is done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from framer.config.loading import build_config, load_config
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.inference.load import read_settings
from framer.models.folders import BASE_FOLDER
from framer.models.restoration import RESTORATION_FILE, STEP, restoration_settings
from framer.training.checkpoint_folder import find_checkpoints, step_of
from framer.training.run_folder import RunFolder
from framer.training.trainer_state import STATE_FILE, read_state

BASE: Final = "base"
"""The argument that means the model that ships with the package."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One model to analyse.

    Attributes:
        label: What figures call it.
        folder: An export, or a checkpoint that is yet to be exported.
        checkpoint: Whether ``folder`` is a checkpoint.
        run: The run that it is of; None for an export that lies elsewhere.
        step: Optimizer steps that it has taken; None where that is not known.
        note: What a reader must know of it; empty where there is nothing.
    """

    label: str
    folder: Path
    checkpoint: bool
    run: Path | None
    step: int | None
    note: str = ""

    @property
    def metrics(self) -> Path | None:
        """The run's ``metrics.jsonl``; None where there is none."""
        found = None if self.run is None else RunFolder(self.run).metrics
        return found if found is not None and found.is_file() else None

    @property
    def fam(self) -> bool:
        """Whether the run trained with FAM; taken as so where its configuration is not there.

        Raises:
            ConfigError: The configuration is damaged.
        """
        config = None if self.run is None else RunFolder(self.run).config
        return config is None or not config.is_file() or load_config(TrainConfig, config).framer.fam

    def settings(self) -> dict[str, object]:
        """What ``restoration.json`` says of an export, and what it will say of a checkpoint's.

        Raises:
            UserError: It is missing or damaged.
        """
        if not self.checkpoint:
            return read_settings(self.folder / RESTORATION_FILE)
        config = build_config(TrainConfig, read_state(self.folder).config, source=str(self.folder / STATE_FILE))
        return dict(restoration_settings(config))


def find_sources(arguments: Sequence[str], *, labels: Sequence[str], every_step: bool) -> list[Source]:
    """Finds the models that a command line names.

    Args:
        arguments: Each ``base``, an export, a run's folder (its export, or its newest checkpoint where it has none
            yet, went on since, or where its export does not say of which step it is), or a checkpoint.
        labels: A label for each argument, or none at all.
        every_step: Whether runs are analysed at each of their kept checkpoints as well.

    Returns:
        The models in the order given, those of a run by their steps; every label once.

    Raises:
        UserError: An argument is none of these, one comes twice, or the labels do not fit.
    """
    if labels and len(labels) != len(arguments):
        raise UserError(
            f"--labels names {len(labels)} models, but {len(arguments)} are given: one label each, in order"
        )
    if not all(label.strip() for label in labels):
        raise UserError("--labels: a label is empty; give a name for each model")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(f"--labels: {', '.join(twice)} is given twice; figures could not tell the models apart")
    found: list[Source] = []
    for place, argument in enumerate(arguments):
        named = labels[place] if labels else None
        found += [replace(source, label=_label(source, named, every_step)) for source in _sources(argument, every_step)]
    folders = [source.folder.resolve() for source in found]
    repeated = [str(source.folder) for place, source in enumerate(found) if folders[place] in folders[:place]]
    if repeated:
        raise UserError(f"{', '.join(repeated)} is given twice")
    return _distinct(found)


def hash_of(files: Iterable[Path], folder: Path) -> str:
    """SHA-256 over files, the first 16 digits.

    Raises:
        UserError: There are no files.
    """
    digest, count = hashlib.sha256(), 0
    for file in files:
        count += 1
        with file.open("rb") as opened:
            while block := opened.read(1 << 22):
                digest.update(block)
    if not count:
        raise UserError(f"{folder} holds no weights (*.safetensors); expected a folder that a run exported")
    return digest.hexdigest()[:16]


def _sources(argument: str, every_step: bool) -> list[Source]:
    if argument == BASE:
        return [
            Source(label=BASE, folder=BASE_FOLDER, checkpoint=False, run=BASE_FOLDER, step=_exported_step(BASE_FOLDER))
        ]
    folder = Path(argument).expanduser()
    if not folder.is_dir():
        raise UserError(f"{argument}: no such folder; give '{BASE}', an export, a run's folder or a checkpoint")
    if (folder / RESTORATION_FILE).is_file():
        run = folder.resolve().parent if folder.resolve() == RunFolder(folder.resolve().parent).export else None
        run = run if run is not None and RunFolder(run).config.is_file() else None
        name = folder.name if run is None else run.name
        step, newest = _exported_step(folder), None if run is None else _newest_step(run)
        behind = newest is not None and step is not None and newest > step
        note = f"the run has gone on to step {newest} since it was exported" if behind else ""
        return [Source(label=name, folder=folder, checkpoint=False, run=run, step=step, note=note)]
    if (folder / STATE_FILE).is_file():
        return [_of_checkpoint(folder, folder.resolve().parent.parent)]
    run_folder = RunFolder(folder)
    kept = find_checkpoints(run_folder.checkpoints)
    exported = (run_folder.export / RESTORATION_FILE).is_file()
    if not kept and not exported:
        raise UserError(
            f"{argument}: neither an export ({RESTORATION_FILE}), nor a run with an export or checkpoints, nor a "
            f"checkpoint ({STATE_FILE})"
        )
    checkpoints = [_of_checkpoint(checkpoint, folder) for checkpoint in kept]
    if not exported:
        checkpoints[-1] = replace(checkpoints[-1], note="the run has no export yet: its newest checkpoint is analysed")
        return checkpoints if every_step else checkpoints[-1:]
    step = _exported_step(run_folder.export)
    export = Source(label=_name(folder), folder=run_folder.export, checkpoint=False, run=folder, step=step)
    if not checkpoints:
        return [export]
    newest = step_of(kept[-1])
    if step is None:
        note = f"its export does not say of which step it is: the newest checkpoint, of step {newest}, is analysed"
        checkpoints[-1] = replace(checkpoints[-1], note=note)
        return checkpoints if every_step else checkpoints[-1:]
    if newest > step:
        note = f"the run went on after its export of step {step}: the newest checkpoint, of step {newest}, is analysed"
        checkpoints[-1] = replace(checkpoints[-1], note=note)
    if not every_step:
        return checkpoints[-1:] if newest > step else [export]
    others = [source for source in checkpoints if source.step != step]
    return sorted([*others, export], key=lambda source: source.step or 0)


def _of_checkpoint(checkpoint: Path, run: Path) -> Source:
    run_with_log = run if RunFolder(run).config.is_file() else None
    name = _name(run if run_with_log is not None else checkpoint)
    return Source(label=name, folder=checkpoint, checkpoint=True, run=run_with_log, step=step_of(checkpoint))


def _newest_step(run: Path) -> int | None:
    kept = find_checkpoints(RunFolder(run).checkpoints)
    return step_of(kept[-1]) if kept else None


def _exported_step(export: Path) -> int | None:
    """The steps that an export has taken, as it says itself; older ones do not.

    A run's newest checkpoint may be younger than its export: the run went on since.
    """
    step = read_settings(export / RESTORATION_FILE).get(STEP)
    return step if isinstance(step, int) else None


def _name(folder: Path) -> str:
    return folder.resolve().name


def _label(source: Source, named: str | None, every_step: bool) -> str:
    label = source.label if named is None else named
    with_step = every_step or (source.checkpoint and named is None)
    return f"{label}, step {source.step}" if with_step and source.step is not None else label


def _distinct(sources: Sequence[Source]) -> list[Source]:
    """Adds as much of the folders above as tells models of one name apart."""
    labels = [source.label for source in sources]
    named: list[Source] = []
    for place, source in enumerate(sources):
        label = source.label
        if labels.count(label) > 1:
            parent = (source.run or source.folder).resolve().parent.name
            label = f"{parent}/{label}"
        taken = [other.label for other in named]
        named.append(replace(source, label=label if label not in taken else f"{label} ({place + 1})"))
    return named
