from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NoReturn

import pytest

from framer.errors import UserError
from framer.files import check_writable, remove_partials, replacing, sync_tree, write_bytes, write_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "state.json"
    path.parent.mkdir()
    path.write_text("old")
    return path


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_content_is_written_and_replaced(path: Path) -> None:
    write_bytes(path, b"new\x00\xff")
    assert path.read_bytes() == b"new\x00\xff"
    write_text(path, "größer 写真\n")
    assert path.read_text(encoding="utf-8") == "größer 写真\n"
    write_bytes(path, b"")
    assert path.read_bytes() == b""
    assert names(path.parent) == ["state.json"]


def test_a_new_file_is_made(path: Path) -> None:
    write_text(path.with_name("new"), "x")
    assert names(path.parent) == ["new", "state.json"]


def test_the_old_content_is_there_until_the_new_is_complete_and_on_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, str]] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.read_text()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_text(path, "new")
    assert seen == [(False, "old"), (True, "new")]  # the file before it is renamed, then its folder


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_after_a_full_disk_the_old_content_is_there_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=f"cannot write {path}: No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(path.parent) == ["state.json"]


def test_after_a_kill_the_old_content_is_there_and_writing_works_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: int) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            write_text(path, "new, and much longer than what comes after it")
    assert path.read_text() == "old"
    write_text(path, "newer")
    assert path.read_text() == "newer"
    assert names(path.parent) == ["state.json"]


def test_two_writers_of_one_file_do_not_mix(path: Path) -> None:
    with replacing(path) as first, replacing(path) as second:
        first.write(b"the first")
        second.write(b"second")
        assert path.read_text() == "old"
    assert path.read_text() == "the first"
    assert names(path.parent) == ["state.json"]


def test_what_killed_writers_left_is_removed_and_nothing_else(path: Path) -> None:
    for name in (".state.json.0123abcd.partial", ".other.partial", "kept.partial", ".kept"):
        (path.parent / name).touch()
    remove_partials(path.parent)
    remove_partials(path.parent / "nowhere")
    assert names(path.parent) == [".kept", "kept.partial", "state.json"]


def test_a_missing_folder(path: Path) -> None:
    target = path.parent / "nowhere" / "file"
    with pytest.raises(UserError, match=f"cannot write {target}: No such file or directory"):
        write_text(target, "x")


def test_a_file_where_the_folder_should_be(path: Path) -> None:
    with pytest.raises(UserError, match=f"cannot write {path / 'file'}: Not a directory"):
        write_text(path / "file", "x")


def test_a_folder_where_the_file_should_be(path: Path) -> None:
    with pytest.raises(UserError, match=f"cannot write {path.parent}: Is a directory"):
        write_text(path.parent, "x")
    assert names(path.parent.parent) == ["run"]
    assert path.read_text() == "old"


def test_a_read_only_disk_that_refuses_to_clean_up_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(UserError, match=f"cannot write {path}: Read-only file system"):
        write_text(path, "new")


def test_every_file_and_folder_of_a_tree_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for name in ("one", "a/two", "a/b/.three"):
        (tmp_path / name).write_text(name)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    sync_tree(tmp_path)
    expected = [entry.stat().st_ino for entry in [tmp_path, *tmp_path.rglob("*")]]
    assert sorted(synced) == sorted(expected)
    assert synced[-1] == tmp_path.stat().st_ino


def test_a_folder_that_can_be_written_to_is_left_as_it_was(path: Path) -> None:
    check_writable(path.parent)
    assert names(path.parent) == ["state.json"]
    check_writable(path.parent / "a" / "b")
    assert names(path.parent) == ["state.json"]


def test_an_output_that_cannot_be_written_to_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"--output {path} is a file; give a folder"):
        check_writable(path)
    with pytest.raises(UserError, match=f"--into: cannot write to {path / 'x'}: Not a directory"):
        check_writable(path / "x", option="--into")

    def read_only(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", read_only)  # the tests may run as root, who may write anywhere
    with pytest.raises(UserError, match=f"cannot write to {path.parent}: Read-only file system"):
        check_writable(path.parent)
