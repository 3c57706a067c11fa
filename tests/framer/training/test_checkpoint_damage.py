"""Damaged checkpoints and full disks: told clearly, nothing deleted, the run goes on from what is good."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import read_steps, run_on_ranks, tiny_config

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.training import checkpoint as checkpoints
from framer.training.checkpoint_choice import choose_checkpoint
from framer.training.command import main
from framer.training.ranks import start_distributed
from framer.training.trainer_state import with_new_settings

SETTINGS = {"max_steps": 6, "checkpoint_steps": 2, "checkpoints_kept": 3}
MODEL_FILE = "mp_rank_00_model_states.pt"
NEWEST, BEFORE = "step-00000006", "step-00000004"


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _hide(path: Path) -> None:
    path.chmod(0)
    path.unlink()
    path.mkdir()


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    (MODEL_FILE, _cut, rf"{MODEL_FILE} has \d+ bytes instead of \d+"),
    (MODEL_FILE, _flip, f"{MODEL_FILE} does not have the content that was written"),
    (MODEL_FILE, Path.unlink, f"{MODEL_FILE} is missing"),
    (MODEL_FILE, _hide, MODEL_FILE),
    ("rank-state-0.pt", _flip, "rank-state-0.pt does not have the content that was written"),
    ("rank-state-0.pt", Path.unlink, "rank-state-0.pt is missing"),
    ("trainer_state.json", _flip, "trainer_state.json"),
    ("trainer_state.json", _cut, "trainer_state.json in .* is damaged"),
    ("trainer_state.json", Path.unlink, "trainer_state.json in .* is damaged: No such file"),
    ("manifest.json", Path.unlink, "manifest.json is missing"),
    ("manifest.json", _cut, "manifest.json is damaged"),
    ("manifest.json", lambda path: path.write_text("[]"), "manifest.json is damaged"),
    ("manifest.json", lambda path: path.write_text('{"format": 1, "files": {}}'), "manifest.json names no files"),
    ("manifest.json", lambda path: path.write_bytes(b"\xff\xfe"), "manifest.json is damaged"),
]


@pytest.fixture(scope="module", autouse=True)
def _one_rank() -> None:
    start_distributed()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of six steps that kept its checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["--config", str(tiny_config(folder, training=SETTINGS))]) == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run's checkpoints."""
    shutil.copytree(finished / "run" / "checkpoints", tmp_path / "run" / "checkpoints")
    shutil.copy(finished / "run" / "metrics.jsonl", tmp_path / "run" / "metrics.jsonl")
    return tmp_path


def _assert_equal(folder: Path, other: Path) -> None:
    assert read_steps(folder) == read_steps(other)
    name = "run/export/diffusion_pytorch_model.safetensors"
    weights, expected = load_file(folder / name), load_file(other / name)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_a_whole_checkpoint_is_taken_as_it_is(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = copied / "run/checkpoints"
    assert choose_checkpoint("auto", folder) == folder / NEWEST
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", BEFORE, NEWEST]
    assert caplog.text == ""


@pytest.mark.parametrize(("name", "damage", "told"), DAMAGE)
def test_damage_is_told_and_the_checkpoint_before_taken(
    copied: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None], told: str
) -> None:
    folder = copied / "run/checkpoints"
    damage(folder / NEWEST / name)
    left = sorted(path.name for path in (folder / NEWEST).iterdir())
    assert choose_checkpoint("auto", folder) == folder / BEFORE
    (message,) = caplog.messages
    assert str(folder / NEWEST) in message
    assert re.search(told, message)
    assert f"renamed to damaged-{NEWEST} and is kept; training continues from {BEFORE}" in message
    assert sorted(path.name for path in (folder / f"damaged-{NEWEST}").iterdir()) == left
    assert not (folder / NEWEST).exists()


def test_two_damaged_ones_in_a_row_and_again(copied: Path) -> None:
    folder = copied / "run/checkpoints"
    shutil.copytree(folder / NEWEST, folder / f"damaged-{NEWEST}")
    _cut(folder / NEWEST / MODEL_FILE)
    _cut(folder / BEFORE / MODEL_FILE)
    assert choose_checkpoint("auto", folder) == folder / "step-00000002"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"damaged-{BEFORE}", f"damaged-{NEWEST}", f"damaged-{NEWEST}-2", "step-00000002"]


def test_a_run_without_any_good_checkpoint_does_not_start_anew(copied: Path) -> None:
    folder = copied / "run/checkpoints"
    for checkpoint in folder.iterdir():
        _flip(checkpoint / MODEL_FILE)
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match=r"no checkpoint of this run is whole: .*training.resume=never and another"):
        choose_checkpoint("auto", folder)
    assert sorted(folder.iterdir()) == before
    for checkpoint in before:
        checkpoint.rename(folder / f"damaged-{checkpoint.name}")
    with pytest.raises(UserError, match=r"only checkpoints that were set aside.*training.resume=never and another"):
        choose_checkpoint("auto", folder)


def test_a_named_checkpoint_that_is_damaged_is_an_error(copied: Path, tmp_path: Path) -> None:
    checkpoint = copied / "run/checkpoints" / NEWEST
    _flip(checkpoint / MODEL_FILE)
    with pytest.raises(UserError, match=rf"is damaged: {checkpoint}: {MODEL_FILE} does not have"):
        choose_checkpoint(str(checkpoint), tmp_path / "other")
    assert checkpoint.is_dir()


@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink])
def test_training_goes_on_from_the_checkpoint_before(
    copied: Path, finished: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(copied / "run/checkpoints" / NEWEST / MODEL_FILE)
    assert main(["--config", str(tiny_config(copied, training=SETTINGS))]) == 0
    assert f"damaged-{NEWEST}" in caplog.text
    _assert_equal(copied, finished)


_CHOOSE = """
import sys
from pathlib import Path
from framer.training.checkpoint_choice import choose_checkpoint
from framer.training.ranks import start_distributed
start_distributed()
print(choose_checkpoint("auto", Path(sys.argv[1])).name, file=sys.stderr)
"""


def test_ranks_that_read_different_files_agree(copied: Path) -> None:
    folder = copied / "run/checkpoints"
    # The largest file is rank 0's to read, so this one is rank 1's.
    _flip(folder / NEWEST / "rank-state-0.pt")
    for status, errors in run_on_ranks(2, _CHOOSE, [folder], timeout=120):
        assert status == 0, errors
        assert errors.strip().splitlines()[-1] == BEFORE
    assert (folder / f"damaged-{NEWEST}").is_dir()


def test_milestones_stay(tmp_path: Path) -> None:
    settings = {**SETTINGS, "checkpoints_kept": 1, "checkpoint_keep_every": 4}
    assert main(["--config", str(tiny_config(tmp_path, training=settings))]) == 0
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == [BEFORE, NEWEST]


def test_resuming_removes_what_a_kill_left(copied: Path) -> None:
    # A kill between publishing a checkpoint and removing the oldest leaves one more than is kept.
    settings = {**SETTINGS, "checkpoints_kept": 2}
    assert main(["--config", str(tiny_config(copied, training=settings))]) == 0
    assert sorted(path.name for path in (copied / "run/checkpoints").iterdir()) == [BEFORE, NEWEST]


def test_a_milestone_must_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"checkpoint_steps": 2, "checkpoint_keep_every": 3}
    assert main(["--config", str(tiny_config(tmp_path, training=settings))]) == 2
    assert "checkpoint_keep_every 3 is not a multiple of checkpoint_steps 2" in capsys.readouterr().err


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Callable[[], contextlib.AbstractContextManager[str]]]:
    """A disk, and a way to fill it for a while: a tmpfs, or a limit on the size of files where none can be mounted."""
    folder.mkdir()
    mounted = (
        shutil.which("mount") is not None
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16m", "framer-test", str(folder)], capture_output=True
        ).returncode
    )
    try:
        yield (lambda: _filled(folder)) if mounted else _small_files
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def _filled(folder: Path) -> Iterator[str]:
    filler = folder / "filler"
    with filler.open("wb") as file:
        file.write(bytes(shutil.disk_usage(folder).free - 300_000))
    try:
        yield "No space left on device"
    finally:
        filler.unlink()


@contextlib.contextmanager
def _small_files() -> Iterator[str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        yield "File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


@pytest.mark.parametrize(("limit", "background"), [("disk", False), ("disk", True), ("file", False)])
def test_a_disk_that_fills_up(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    background: bool,
    limit: str,
) -> None:
    with _small_disk(tmp_path / "disk") as fill:
        folder = tmp_path / "disk"
        settings = {**SETTINGS, "checkpoint_async": background}
        config = tiny_config(folder, training=settings)
        assert main(["--config", str(config), "training.max_steps=2"]) == 0
        with monkeypatch.context() as patched, (_small_files if limit == "file" else fill)() as told:
            patched.setattr(checkpoints, "size_of_newest", lambda folder: 0)  # not seen coming
            assert main(["--config", str(config)]) == 2
        message = capsys.readouterr().err
        checkpoint, metrics = folder / "run/checkpoints" / BEFORE, folder / "run/metrics.jsonl"
        # With a checkpoint written in the background, the next step's metrics may be what finds no space first.
        causes = [f"error: cannot save the checkpoint {checkpoint}: "]
        causes += [f"error: cannot write {metrics}: "] if background else []
        assert any(cause in message for cause in causes)
        assert told in message
        assert "Traceback" not in message
        assert [path.name for path in checkpoint.parent.glob("step-*")] == ["step-00000002"]
        assert background or len(list(checkpoint.parent.iterdir())) == 1
        assert main(["--config", str(config)]) == 0
        _assert_equal(folder, finished)


def test_a_checkpoint_older_than_a_setting_has_its_default(tmp_path: Path) -> None:
    config = load_config(TrainConfig, tiny_config(tmp_path)).model_dump(mode="json")
    older = {key: value for key, value in config.items() if key != "health"}
    older["training"] = {key: value for key, value in config["training"].items() if key != "ema"}
    assert with_new_settings(older) == config
    older["gone"] = 1
    assert with_new_settings(older) == older


def test_a_full_disk_is_seen_coming(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, training=SETTINGS)
    assert main(["--config", str(config), "training.max_steps=2"]) == 0
    folder = tmp_path / "run/checkpoints"
    files = json.loads((folder / "step-00000002/manifest.json").read_text())["files"]
    size = sum(file["size"] for file in files.values())
    assert size == sum(p.stat().st_size for p in (folder / "step-00000002").iterdir() if p.name != "manifest.json")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    assert main(["--config", str(config)]) == 2
    message = capsys.readouterr().err
    assert f"cannot save the checkpoint {BEFORE}: the one before takes {size / 1e6:.1f} MB" in message
    assert "free some space" in message
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, training=SETTINGS)
    make = Path.mkdir

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        if ".unfinished" in self.name:
            raise PermissionError(13, "Permission denied", str(self))
        make(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["--config", str(config)]) == 2
    message = capsys.readouterr().err
    assert "cannot save the checkpoint" in message
    assert "Permission denied" in message
    assert list((tmp_path / "run/checkpoints").iterdir()) == []
