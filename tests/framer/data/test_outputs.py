from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from framer.data.outputs import LOCK_FILE, sole_writer
from framer.errors import UserError


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[Path]:
    """A folder whose lock is held as by another process: the system tells descriptors apart, not processes."""
    with (tmp_path / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_second_process_is_refused_and_leaves_the_lock(other_process: Path) -> None:
    for _ in range(2):
        message = r"another process is writing into .*give another folder"
        with pytest.raises(UserError, match=message), sole_writer(other_process):
            pass
    assert names(other_process) == [LOCK_FILE]


def test_the_lock_is_held_meanwhile_and_gone_after(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "a" / "b"), sole_writer(tmp_path / "a" / "." / "b"):
        with (tmp_path / "a" / "b" / LOCK_FILE).open("w") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (tmp_path / "a" / "b" / "kept").touch()
    assert names(tmp_path) == ["a", "b", "kept"]


def test_a_lock_that_a_killed_process_left_is_taken(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).touch()
    with sole_writer(tmp_path):
        pass
    assert names(tmp_path) == []


def test_a_process_that_is_about_to_end_is_waited_for(other_process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            (other_process / LOCK_FILE).unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    with sole_writer(other_process, patience=60.0):
        assert len(waits) == 3


def test_folders_that_stayed_empty_are_removed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no"), sole_writer(tmp_path / "a" / "b"):
        raise UserError("no")
    assert names(tmp_path) == []


def test_a_lock_that_its_holder_removed_meanwhile_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flock, taken = tmp_path / LOCK_FILE, fcntl.flock, []

    def after_the_removal(descriptor: int, operation: int) -> None:
        taken.append(descriptor)
        if len(taken) == 1:
            path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_the_removal)
    with sole_writer(tmp_path):
        assert path.exists()
    assert len(taken) == 2


def test_a_child_does_not_keep_the_lock_of_a_killed_parent(tmp_path: Path) -> None:
    at_work, start = os.pipe()
    end, stop = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            lock = sole_writer(tmp_path)
            lock.__enter__()
            if os.fork() == 0:
                os.close(stop)
                os.write(start, b"1")
                os.read(end, 1)  # until the test closes the other end
        finally:
            os._exit(0)
    os.close(start)
    try:
        assert os.read(at_work, 1) == b"1"
        os.waitpid(process, 0)
        assert names(tmp_path) == [LOCK_FILE]
        with sole_writer(tmp_path):
            pass
    finally:
        for descriptor in (at_work, end, stop):
            os.close(descriptor)


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without)
    with sole_writer(tmp_path):
        pass
    assert "has no locks (No locks available); let no second process write into it" in caplog.text


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/z: Not a directory"), sole_writer(tmp_path / "file" / "z"):
        pass
    with pytest.raises(UserError, match="file is a file; give a folder"), sole_writer(tmp_path / "file"):
        pass
