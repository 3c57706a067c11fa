"""Writing shards: the same bytes every time, whatever happened in between."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from shard_cases import contents, dataset_of, make_shards

from framer.data.images import write_png
from framer.data.outputs import LOCK_FILE
from framer.data.shards import writer
from framer.data.shards.manifest import MANIFEST_FILE, UNFINISHED_FILE, read_manifest
from framer.data.shards.photographs import PHOTOGRAPHS_FILE
from framer.data.shards.stream_pairs import StreamPairs
from framer.data.shards.writer import write_shards
from framer.errors import UserError


def test_the_folder_is_what_the_manifest_says(shards: Path) -> None:
    manifest = read_manifest(shards)
    assert manifest.samples == 23
    assert [bucket.size for bucket in manifest.buckets] == [(32, 32), (24, 40)]
    assert sum(bucket.samples for bucket in manifest.buckets) == 23
    assert (manifest.scale, manifest.degradation, manifest.crop_size) == (4, "light", 32)
    names = {shard.file for shard in manifest.shards} | {shard.index_file for shard in manifest.shards}
    assert {path.name for path in shards.iterdir()} == names | {MANIFEST_FILE, PHOTOGRAPHS_FILE}
    assert len(manifest.shards) >= 4
    assert sorted(shard.file for shard in manifest.shards) == [f"{i:06d}.tar" for i in range(len(manifest.shards))]
    assert all(shard.bytes < 60_000 for shard in manifest.shards)


def test_webdataset_reads_the_shards_as_the_samples_of_the_stream(photos: list[Path], shards: Path) -> None:
    dataset = dataset_of(photos)
    numbers = []
    for shard in read_manifest(shards).shards:
        count = 0
        for sample in webdataset.WebDataset(str(shards / shard.file), shardshuffle=False):
            number = json.loads(sample["json"])["index"]
            expected = dataset[number]
            assert sample["__key__"] == f"{number:09d}"
            assert json.loads(sample["json"]) == {
                "index": number,
                "name": expected["name"],
                "caption": None,
                "text": None,
            }
            for member, tensor in (("hr.png", expected["hr"]), ("lr.png", expected["lr"])):
                pixels = np.array(Image.open(io.BytesIO(sample[member])))
                np.testing.assert_array_equal(pixels, ((tensor + 1) * 127.5).round().permute(1, 2, 0).numpy())
            assert expected["hr"].shape[1:] == shard.size
            numbers.append(number)
            count += 1
        assert count == shard.samples
    assert sorted(numbers) == list(range(23))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_bytes_do_not_depend_on_the_workers(photos: list[Path], shards: Path, tmp_path: Path, workers: int) -> None:
    make_shards(dataset_of(photos), tmp_path, workers=workers)
    assert contents(tmp_path) == contents(shards)


def _changed_files(folder: Path, before: dict[str, int]) -> set[str]:
    return {path.name for path in folder.glob("*.tar") if path.stat().st_mtime_ns != before.get(path.name)}


def _times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


@pytest.mark.parametrize("broken_after", [0, 2])
def test_an_interrupted_call_is_finished_by_another_one(
    photos: list[Path], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_after: int
) -> None:
    write = writer._write_shard
    monkeypatch.setattr(
        writer,
        "_write_shard",
        lambda path, *a, **k: _stop() if path.name == f"{broken_after:06d}.tar" else write(path, *a, **k),
    )
    with pytest.raises(KeyboardInterrupt):
        make_shards(dataset_of(photos), tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / MANIFEST_FILE).exists()
    assert (tmp_path / UNFINISHED_FILE).is_file()
    before = _times(tmp_path)
    assert len(before) == broken_after
    make_shards(dataset_of(photos), tmp_path, workers=1)
    assert contents(tmp_path) == contents(shards)
    assert not set(before) & _changed_files(tmp_path, before)


def _stop() -> int:
    raise KeyboardInterrupt


_WRITE_SLOWLY = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from shard_cases import dataset_of, make_shards
from framer.data.shards import stream_pairs
png = stream_pairs.png_bytes
stream_pairs.png_bytes = lambda pixels: (time.sleep(0.02), png(pixels))[1]
make_shards(dataset_of([Path(path) for path in sys.argv[3:]]), Path(sys.argv[2]), workers=1)
"""


def test_killed_and_run_again(photos: list[Path], shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    arguments = [str(Path(__file__).parent), str(folder), *map(str, photos)]
    process = subprocess.Popen([sys.executable, "-c", _WRITE_SLOWLY, *arguments], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (folder / "000001.tar").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / MANIFEST_FILE).exists()
    make_shards(dataset_of(photos), folder)
    assert contents(folder) == contents(shards)


@pytest.mark.parametrize("damage", ["flip a bit", "truncate", "remove", "index"])
def test_only_damaged_shards_are_written_again(
    photos: list[Path], shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(shards, folder)
    path = folder / ("000001.index.npy" if damage == "index" else "000001.tar")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:1000] if damage == "truncate" else data)
    before = _times(folder)
    make_shards(dataset_of(photos), folder)
    assert contents(folder) == contents(shards)
    assert _changed_files(folder, before) == {"000001.tar"}
    assert f"{folder / '000001.tar'} is missing or damaged and is written again" in caplog.messages


@pytest.mark.parametrize(
    ("options", "settings", "named"),
    [
        ({"samples": 24}, {}, "--samples 23 (now 24)"),
        ({"shard_size": 16_000}, {}, "--shard-size 15000 (now 16000)"),
        ({}, {"seed": 4}, "seed 3 (now 4)"),
        ({}, {"degradation": "heavy"}, "data.degradation light"),
        ({}, {"buckets": [(32, 32)]}, "data.buckets [[32, 32], [24, 40]] (now [[32, 32]])"),
        ({}, {"colour_jitter": True}, "data.colour_jitter False (now True)"),
    ],
)
def test_a_folder_made_from_something_else_is_refused(
    photos: list[Path], shards: Path, options: dict[str, int], settings: dict[str, object], named: str
) -> None:
    before = contents(shards)
    with pytest.raises(UserError, match="made from something else") as caught:
        make_shards(dataset_of(photos, **settings), shards, **options)
    assert named in str(caught.value)
    assert contents(shards) == before


def test_other_photographs_of_the_same_names_are_refused(photos: list[Path], shards: Path, tmp_path: Path) -> None:
    others = [Path(shutil.copy(photo, tmp_path)) for photo in photos]
    write_png(others[2], np.zeros((70, 70, 3), np.uint8))
    with pytest.raises(UserError, match=r"photographs 5 files, SHA-256 .* \(now 5 files, SHA-256"):
        make_shards(dataset_of(others), shards)


def test_tar_files_of_others_are_left_alone(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "000007.tar").write_bytes(b"precious")
    with pytest.raises(UserError, match="holds numbered tar files that this command did not write"):
        make_shards(dataset_of(photos), tmp_path)
    assert contents(tmp_path) == {"000007.tar": b"precious"}


def test_the_folder_is_a_file(photos: list[Path]) -> None:
    with pytest.raises(UserError, match="is a file; give a folder"):
        make_shards(dataset_of(photos), photos[0])


def test_a_folder_that_another_process_writes_into_is_refused(photos: list[Path], tmp_path: Path) -> None:
    with (tmp_path / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing into"):
            make_shards(dataset_of(photos), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_what_a_killed_process_left_half_written_is_removed(photos: list[Path], shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "out")
    (tmp_path / "out" / ".000001.tar.0123abcd.partial").write_bytes(b"half")
    make_shards(dataset_of(photos), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(shards)


def test_a_full_disk_keeps_the_shards_before(
    photos: list[Path], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync
    calls: list[int] = []

    def full(descriptor: int) -> None:
        if "/.000002.tar." in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            calls.append(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*000002\.tar: No space left on device"):
        make_shards(dataset_of(photos), tmp_path)
    monkeypatch.undo()
    assert calls
    assert not list(tmp_path.glob(".*.partial"))
    assert len(list(tmp_path.glob("*.tar"))) == 2
    make_shards(dataset_of(photos), tmp_path)
    assert contents(tmp_path) == contents(shards)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_photograph_that_vanished_is_named(photos: list[Path], tmp_path: Path, workers: int) -> None:
    copies = [Path(shutil.copy(photo, tmp_path)) for photo in photos]
    dataset = dataset_of(copies, cache_bytes=0)
    source = StreamPairs(dataset, samples=23)  # reads the photographs for the fingerprint
    copies[0].unlink()
    with pytest.raises(UserError) as caught:
        write_shards(source, tmp_path / "out", crop_size=32, shard_size=15_000, workers=workers)
    assert str(caught.value).startswith(f"{copies[0]}: cannot be read")
    assert "Traceback" not in str(caught.value)
