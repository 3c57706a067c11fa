"""Where a run can be watched: TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from framer.config.loading import save_config
from framer.config.trackers import WandbConfig
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.extras import require
from framer.files import write_text, writing
from framer.training.run_folder import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from wandb import Run

logger = logging.getLogger(__name__)

WANDB_STATE: Final = "framer.json"
"""Beside W&B's own files: the run's id and the last step that was logged before this process."""


class Tracker(Protocol):
    """Shows one run; on rank 0 alone.

    Steps come in order, and a resumed run logs on from where its checkpoint stands.
    """

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Shows the numbers of one optimizer step.

        Raises:
            OSError: They cannot be written.
        """

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Shows a picture file.

        Raises:
            OSError: It cannot be read or written.
        """

    def close(self) -> None:
        """Writes what is buffered.

        Raises:
            OSError: It cannot be written.
        """


class TensorBoardTracker:
    """Event files for ``tensorboard --logdir``.

    Args:
        folder: Where they go.
        config: Shown as text.
        start_step: Optimizer steps already taken; what the files show after it is hidden, for it comes again.

    Raises:
        MissingExtraError: TensorBoard is not installed.
        UserError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, config: TrainConfig, *, start_step: int) -> None:
        require("tensorboard", extra="train")
        writer_class = require("torch.utils.tensorboard", extra="train").SummaryWriter
        with writing(folder):
            self._writer: SummaryWriter = writer_class(str(folder), purge_step=start_step + 1)
            self._writer.add_text("config", f"```yaml\n{save_config(config)}```", start_step)

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """See :class:`Tracker`."""
        import numpy as np

        with require("PIL.Image", extra="train").open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases, which a resumed training continues.

    W&B takes no step twice: what a resumed training logs again, up to the last step that was logged before, is left
    out, and W&B keeps what it was told first. Where it fails later, the run goes on without it.

    Args:
        folder: The run's folder; W&B's files go to ``wandb`` in it.
        settings: Project, names and mode.
        config: Shown with the run.
        last_logged: The last step in the run's metrics, whatever the checkpoint that it resumes from.

    Raises:
        MissingExtraError: ``wandb`` is not installed.
        UserError: W&B refuses, as without a key where the mode is ``online``, or the folder cannot be written to.
    """

    def __init__(self, folder: Path, settings: WandbConfig, config: TrainConfig, *, last_logged: int) -> None:
        if settings.mode == "offline":
            # Its own reports of errors would look for a server even so.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb = require("wandb", extra="wandb")
        state = folder / "wandb" / WANDB_STATE
        with writing(state.parent):
            state.parent.mkdir(exist_ok=True)
        self._failed = False
        run_id, logged_before = _read_state(state)
        self._last_logged = max(last_logged, logged_before)
        write_text(state, json.dumps({"id": run_id, "last_logged": self._last_logged}) + "\n")
        try:
            self._run: Run = wandb.init(
                project=settings.project,
                name=settings.name or folder.resolve().name,
                entity=settings.entity,
                mode=settings.mode,
                dir=str(folder),
                id=run_id,
                resume="allow",
                config=config.model_dump(mode="json"),
                # The settings of a resumed run may differ where it is allowed to change them.
                allow_val_change=True,
                settings=wandb.Settings(console="off", silent=settings.mode == "offline"),
            )
        except (wandb.Error, OSError) as error:
            raise UserError(f"trackers.wandb (mode {settings.mode}): {error}") from error

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        if step > self._last_logged:
            self._log(dict(scalars), step)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """See :class:`Tracker`."""
        if step > self._last_logged:
            self._log({name: require("wandb", extra="wandb").Image(str(path))}, step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        if self._failed:
            return
        try:
            self._run.log(values, step=step)
        except require("wandb", extra="wandb").Error as error:
            self._failed = True
            logger.warning(
                "trackers.wandb: %s; the run goes on without W&B, and its metrics.jsonl has every step", error
            )

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._run.finish()
        # Offline, that returns before its service has written everything.
        require("wandb", extra="wandb").teardown()


def open_trackers(config: TrainConfig, folder: RunFolder, *, start_step: int, last_logged: int) -> list[Tracker]:
    """Starts the trackers that ``config.trackers`` names.

    Args:
        config: The run.
        folder: The run's folder.
        start_step: Optimizer steps already taken.
        last_logged: The last step that the run has logged: later than ``start_step`` where it was interrupted.

    Raises:
        MissingExtraError: A tracker is not installed.
        UserError: A tracker refuses, or a folder cannot be written to.
    """
    trackers: list[Tracker] = []
    if config.trackers.tensorboard:
        trackers.append(TensorBoardTracker(folder.tensorboard, config, start_step=start_step))
    if config.trackers.wandb is not None:
        trackers.append(WandbTracker(folder.root, config.trackers.wandb, config, last_logged=last_logged))
    return trackers


def _read_state(path: Path) -> tuple[str, int]:
    if not path.is_file():
        return secrets.token_hex(4), 0
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return str(state["id"]), int(state["last_logged"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}; remove it to log to a new run of W&B") from None
