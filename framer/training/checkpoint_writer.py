"""One rank's files of a checkpoint: hashed as they are written, durable when done, in the background if asked for."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch

from framer.training.manifest import FileRecord, HashingFile, hash_file

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_CHUNK = 1 << 22


class CheckpointWriter:
    """Writes what a rank saves.

    In the background, the state is first serialised into memory: training may change it from then on, and a thread
    writes the very bytes that would have been written at once. That takes as much CPU memory as the rank's files.

    Nothing raises: errors come out of :meth:`result`, so that a rank whose disk fails still comes to every collective
    of the others.

    Args:
        folder: The checkpoint's folder; exists when files are added.
        background: Serialise into memory and let a thread write.
    """

    def __init__(self, folder: Path, *, background: bool) -> None:
        self._folder = folder
        self._background = background
        self._snapshots: list[tuple[str, io.BytesIO]] = []
        self._present: list[str] = []
        self._records: dict[str, FileRecord] = {}
        self._error: str | None = None
        self._thread: threading.Thread | None = None

    def add(self, name: str, state: Any) -> None:
        """Saves an object with ``torch.save``.

        Args:
            name: File name.
            state: What can be pickled.
        """
        if self._error is not None:  # a full disk is full for the next file too
            return
        with self._errors_kept(name):
            if self._background:
                snapshot = io.BytesIO()
                torch.save(state, snapshot)
                self._snapshots.append((name, snapshot))
                return
            with self._open(name) as file:
                torch.save(state, cast(IO[bytes], file))

    def add_present(self, name: str) -> None:
        """Takes in a file that someone else has written.

        Args:
            name: Path relative to the folder.
        """
        self._present.append(name)

    def make_folder(self, path: str, *, exist_ok: bool = False) -> None:
        """Makes a folder."""
        with self._errors_kept(path):
            Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def start(self) -> None:
        """Writes what is not written yet; returns at once if in the background."""
        if self._background:
            # A daemon: a run that fails does not wait for it, and what is half written counts for nothing.
            self._thread = threading.Thread(target=self._write_rest, name="checkpoint-writer", daemon=True)
            self._thread.start()
        else:
            self._write_rest()

    @property
    def busy(self) -> bool:
        """Whether the thread still writes."""
        return self._thread is not None and self._thread.is_alive()

    def result(self) -> tuple[dict[str, FileRecord], str | None]:
        """Waits for the thread; the files written, and the first error's message if there was one."""
        if self._thread is not None:
            self._thread.join()
        return self._records, self._error

    def _write_rest(self) -> None:
        while self._snapshots:
            name, snapshot = self._snapshots.pop(0)
            with self._errors_kept(name), self._open(name) as file, snapshot.getbuffer() as content:
                for start in range(0, len(content), _CHUNK):
                    file.write(content[start : start + _CHUNK])
        for name in self._present:
            with self._errors_kept(name):
                with (self._folder / name).open("rb") as present:
                    os.fsync(present.fileno())
                self._records[name] = hash_file(self._folder / name)

    @contextmanager
    def _open(self, name: str) -> Iterator[HashingFile]:
        with (self._folder / name).open("wb") as file:
            hashing = HashingFile(file)
            yield hashing
            hashing.flush()
            self._records[name] = hashing.record()
            os.fsync(file.fileno())

    @contextmanager
    def _errors_kept(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a full or failing disk raises
            if self._error is None:
                self._error = f"{name}: {getattr(error, 'strerror', None) or repr(error)}"


class _EngineFiles:
    """DeepSpeed's checkpoint engine with its writing replaced."""

    def __init__(self, inner: Any, writer: CheckpointWriter, folder: Path, zero_stage: int) -> None:
        self._inner = inner
        self._zero_stage = zero_stage
        self._writer = writer
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._writer.make_folder(path, exist_ok=exist_ok)

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        optimizer = state_dict.get("optimizer_state_dict")
        if optimizer is not None:
            # The bf16 optimizer of stage 1 leaves it out, and DeepSpeed's conversions ask for it.
            optimizer.setdefault("zero_stage", self._zero_stage)
        self._writer.add(str(Path(path).relative_to(self._folder)), state_dict)


@contextmanager
def saving_through(engine: DeepSpeedEngine, writer: CheckpointWriter, folder: Path) -> Iterator[None]:
    """Lets DeepSpeed save through a writer.

    Its own would raise on the rank whose disk fails and leave the others waiting in its barriers.

    Args:
        engine: About to save.
        writer: Takes its files.
        folder: The checkpoint's folder.
    """
    inner = engine.checkpoint_engine
    engine.checkpoint_engine = _EngineFiles(inner, writer, folder, engine.zero_optimization_stage())
    # DeepSpeed leaves scripts beside the checkpoints, which no manifest covers; `framer export` does what they do.
    engine._copy_recovery_script = lambda _: None
    try:
        yield
    finally:
        engine.checkpoint_engine = inner
        del engine._copy_recovery_script
