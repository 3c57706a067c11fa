"""Training an ablation's runs, each in a process of its own, and telling which are done."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal

from framer.ablation.plan import PlannedRun
from framer.analysis.report import REPORT_NAME
from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.data.sources import with_data_settings, with_shard_settings, with_text_settings
from framer.errors import UserError
from framer.files import writing
from framer.training.preemption import SIGNALS
from framer.training.run_folder import RunFolder
from framer.training.trainer_state import PHOTOGRAPHS

Launcher = Literal["python", "deepspeed"]

LOG: Final = "train.log"
_ALIKE: Final = (
    "output_dir",
    "data.workers",
    "training.resume",
    "training.checkpoint_",
    "training.checkpoints_kept",
    "training.sample_steps",
    "evaluation.allow_training_photographs",
    "distributed.",
    "health.",
    "trackers.",
)
"""Beginnings of settings that no result depends on: where a run lies, how it went on, and what it leaves beside."""


def folder_of(run: PlannedRun) -> RunFolder:
    """Where a run lies."""
    return RunFolder(Path(run.config.output_dir))


def is_finished(run: PlannedRun) -> bool:
    """Whether a run has been trained, evaluated and reported to its end."""
    folder = folder_of(run)
    return (folder.root / REPORT_NAME).is_file() and folder.sample_table(run.config.training.max_steps).is_file()


def check_same_settings(run: PlannedRun) -> None:
    """Refuses to take a run of other settings, left from an earlier study, for this one.

    Raises:
        UserError: The folder holds such a run; the settings that differ are named.
    """
    folder = folder_of(run)
    if not folder.config.is_file():
        return
    found = _comparable(load_config(TrainConfig, folder.config).model_dump(mode="json"))
    # The trainer writes down what photographs and stores of pairs and texts add.
    wanted = _comparable(_as_written_down(run).model_dump(mode="json"))
    differing = [
        f"{key}={wanted.get(key)} (there {found.get(key)})"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key) and not (key == PHOTOGRAPHS and None in (found.get(key), wanted.get(key)))
    ]
    if differing:
        raise UserError(f"{folder.root} holds a run of other settings: {', '.join(differing)}; choose another --output")


def _as_written_down(run: PlannedRun) -> TrainConfig:
    """A run's configuration as the trainer completes it; a finished run's photographs need not be there any more."""
    try:
        return with_data_settings(run.config)
    except UserError:
        if not is_finished(run):
            raise
        return with_shard_settings(with_text_settings(run.config))


def train(run: PlannedRun, launcher: Launcher, launcher_arguments: Sequence[str] = ()) -> int:
    """Trains a run to its end, going on from its newest checkpoint where there is one.

    What it prints goes to ``train.log`` in its folder.

    Args:
        run: The run.
        launcher: ``python``, a single process; or ``deepspeed``, its launcher with all GPUs of the machine.
        launcher_arguments: More arguments of DeepSpeed's launcher.

    Returns:
        The exit status of training.

    Raises:
        UserError: The folder cannot be written to.
    """
    folder = folder_of(run).root
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / LOG).open("ab")
    with log:
        command = [*_launch(launcher, launcher_arguments), "--config", str(run.base), *run.overrides]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment())  # noqa: S603
        try:
            with _signals_passed_on(process):
                return process.wait()
        finally:
            # Ctrl-C reaches the run by itself; whatever else ended the waiting must not leave it behind.
            if process.poll() is None:
                process.terminate()
                process.wait()


@contextlib.contextmanager
def _signals_passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hands a scheduler's signals on to the run, which saves itself and ends with status 75."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _launch(launcher: Launcher, arguments: Sequence[str]) -> list[str]:
    if launcher == "python":
        return [sys.executable, "-m", "framer.training"]
    program = Path(sys.executable).with_name("deepspeed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [sys.executable, str(program), "--master_port", str(port), *arguments, "--module", "framer.training"]


def _environment() -> dict[str, str]:
    """This process's; a source tree that it was started in is found by the run too."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted key and value of all settings that make a run what it is."""
    flat: dict[str, Any] = {}

    def flatten(section: dict[str, Any], path: str) -> None:
        for name, value in section.items():
            key = f"{path}{name}"
            if isinstance(value, dict):
                flatten(value, f"{key}.")
            elif not key.startswith(_ALIKE):
                flat[key] = value

    flatten(config, "")
    return flat
