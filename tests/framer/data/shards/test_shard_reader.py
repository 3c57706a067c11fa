"""Reading shards: the pairs that were written, in any order, in any process."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from shard_cases import dataset_of, make_shards
from torch.utils.data import DataLoader

from framer.data.dataset import RealISRDataset
from framer.data.manifests import fingerprint_of
from framer.data.samples import Sample
from framer.data.shards import reader
from framer.data.shards.index import HR, members_of, open_index, spans_of
from framer.data.shards.manifest import MANIFEST_FILE, UNFINISHED_FILE, read_manifest
from framer.data.shards.reader import ShardDataset
from framer.data.shards.verify import verify_shards
from framer.data.workers import loaded
from framer.errors import UserError

MEMBERS = members_of(latents=False)


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shards, tmp_path / "copy")


def _open(folder: Path, **options: bool) -> ShardDataset:
    return ShardDataset(folder, read_manifest(folder), seed=5, **options)


def _epoch(dataset: ShardDataset, epoch: int = 0) -> list[Sample]:
    return [
        dataset.sample(bucket, epoch * size + place, 0)
        for bucket, size in enumerate(dataset.bucket_sizes)
        for place in range(size)
    ]


def _number_of(sample: Sample, originals: list[Sample]) -> int:
    """Which sample of the photographs' stream this one is, by its pixels."""
    same = [
        original["index"]
        for original in originals
        if all(original[key].shape == sample[key].shape for key in ("hr", "lr"))
        and torch.equal(original["hr"], sample["hr"])
        and torch.equal(original["lr"], sample["lr"])
        and torch.equal(original["lr_upsampled"], sample["lr_upsampled"])
        and original["name"] == sample["name"]
    ]
    assert len(same) == 1
    return same[0]


def test_the_tensors_equal_those_of_the_photographs(photos: list[Path], shards: Path) -> None:
    on_the_fly = dataset_of(photos)
    originals = [on_the_fly[number] for number in range(23)]
    dataset = _open(shards)
    assert len(dataset) == 23
    for epoch in range(2):
        samples = _epoch(dataset, epoch)
        assert sorted(_number_of(sample, originals) for sample in samples) == list(range(23))
        for sample, original in ((s, originals[_number_of(s, originals)]) for s in samples):
            for key in ("hr", "lr", "lr_upsampled"):
                tensor = sample[key]  # type: ignore[literal-required]
                assert tensor.dtype == torch.float32
                assert tensor.is_contiguous()
            assert sample.keys() == original.keys()


@pytest.mark.parametrize("degradation", ["heavy", "stablesr"])
def test_a_sharpened_target_is_rounded_to_8_bits(photos: list[Path], tmp_path: Path, degradation: str) -> None:
    on_the_fly = RealISRDataset(photos, crop_size=32, degradation=degradation)
    make_shards(on_the_fly, tmp_path, samples=5)
    originals = {sample["name"]: sample for sample in (on_the_fly[number] for number in range(5))}
    for sample in _epoch(_open(tmp_path)):
        original = originals.pop(sample["name"])
        assert torch.equal(sample["lr"], original["lr"])
        assert torch.equal(sample["lr_upsampled"], original["lr_upsampled"])
        assert 0 < (sample["hr"] - original["hr"]).abs().max() <= 1 / 255 + 1e-6
    assert not originals


def test_a_sample_depends_on_seed_and_index_alone(shards: Path) -> None:
    options = {"horizontal_flip": True, "quarter_turns": True}
    first, second = _open(shards, **options), pickle.loads(pickle.dumps(_open(shards, **options)))
    forward = [first[index] for index in range(60)]
    for index in reversed(range(60)):
        sample = second[index]
        assert sample["index"] == forward[index]["index"] == index
        assert torch.equal(sample["hr"], forward[index]["hr"])
        assert torch.equal(sample["lr"], forward[index]["lr"])


def test_pairs_are_mirrored_and_turned_together(photos: list[Path], shards: Path) -> None:
    plain, changed = _open(shards), _open(shards, horizontal_flip=True, quarter_turns=True)
    ways: dict[tuple[int, int], set[tuple[bool, int]]] = {}
    for index in range(200):
        original, sample = plain[index], changed[index]
        matching = {
            (flip, turns)
            for flip in (False, True)
            for turns in range(4)
            if all(
                torch.equal(_turned(original[key], flip, turns), sample[key])  # type: ignore[literal-required]
                for key in ("hr", "lr")
            )
        }
        assert len(matching) == 1
        torch.testing.assert_close(
            sample["lr_upsampled"], _turned(original["lr_upsampled"], *next(iter(matching))), atol=1e-5, rtol=0.0
        )
        ways.setdefault(tuple(original["hr"].shape[1:]), set()).update(matching)  # type: ignore[arg-type]
    assert ways[32, 32] == {(flip, turns) for flip in (False, True) for turns in range(4)}
    assert ways[24, 40] == {(flip, turns) for flip in (False, True) for turns in (0, 2)}


def _turned(image: torch.Tensor, flip: bool, turns: int) -> torch.Tensor:
    return torch.rot90(image.flip(2) if flip else image, turns, (1, 2))


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same_after_the_parent_has_read(shards: Path, start_method: str) -> None:
    dataset = _open(shards)
    expected = [dataset[index]["lr"] for index in range(20)]
    loader = DataLoader(
        dataset, batch_size=None, sampler=range(20), num_workers=2, multiprocessing_context=start_method
    )
    assert all(torch.equal(sample["lr"], lr) for sample, lr in zip(loader, expected, strict=True))
    assert all(torch.equal(dataset[index]["lr"], lr) for index, lr in enumerate(expected))


def test_open_files_are_bounded_and_closed(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "OPEN_SHARDS", 2)

    def descriptors() -> int:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(str(link.readlink()).startswith(str(shards)) for link in links)

    dataset = _open(shards)
    assert descriptors() == 0
    most = 0
    for index in range(40):
        dataset[index]
        most = max(most, descriptors())
    assert most == 2 * 2  # each shard, and the map of its index
    dataset.close()
    assert descriptors() == 0
    assert torch.equal(dataset[3]["hr"], _open(shards)[3]["hr"])


def _edit(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST_FILE
    content = json.loads(path.read_text()) | changes
    del content["sha256"]
    path.write_text(json.dumps(content | {"sha256": fingerprint_of(content)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "2"}, "format_version: input should be 2"),
        ({"scale": 3}, "scale: input should be 2, 4 or 8"),
        ({"samples": 24}, "there are 24 samples, 23 of them in shards"),
        ({"shards": []}, r"bucket \[32, 32\] has \d+ samples, its shards 0"),
        ({"made_from": {}}, "the fingerprint is not that of made_from"),
        ({"buckets": [{"height": 32, "width": 32, "samples": 23}]}, r"00000\d\.tar is of no bucket"),
        ({"more": 1}, "more: extra inputs are not permitted"),
    ],
)
def test_a_manifest_that_contradicts_itself(copy: Path, changes: dict[str, object], message: str) -> None:
    _edit(copy, **changes)
    with pytest.raises(UserError, match=f"(?i){MANIFEST_FILE} is damaged: {message}"):
        read_manifest(copy)


@pytest.mark.parametrize("version", [1, 3])
def test_a_manifest_of_another_format(photos: list[Path], copy: Path, version: int) -> None:
    _edit(copy, format_version=version)
    for reads in (lambda: read_manifest(copy), lambda: make_shards(dataset_of(photos), copy)):
        with pytest.raises(UserError, match=rf"shards\.json is of format {version}, but .* reads format 2; make the"):
            reads()


@pytest.mark.parametrize(
    ("before", "after"), [('"degradation": "light"', '"degradation": "heavy"'), ('"crop_size": 32', '"crop_size": 16')]
)
def test_a_manifest_that_was_changed_by_hand(copy: Path, before: str, after: str) -> None:
    path = copy / MANIFEST_FILE
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(UserError, match=r"shards\.json is damaged: the content is not what was written"):
        read_manifest(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 2'])
def test_a_manifest_that_is_damaged(copy: Path, text: str) -> None:
    (copy / MANIFEST_FILE).write_text(text)
    with pytest.raises(UserError, match=f"{MANIFEST_FILE} is damaged: "):
        read_manifest(copy)


def test_a_missing_manifest(copy: Path) -> None:
    (copy / MANIFEST_FILE).rename(copy / UNFINISHED_FILE)
    with pytest.raises(UserError, match=r"has no shards\.json: its shards are not finished; run the same"):
        read_manifest(copy)
    (copy / UNFINISHED_FILE).unlink()
    with pytest.raises(UserError, match=r"has no shards\.json: it cannot be read as shards; run the same"):
        read_manifest(copy)


@pytest.mark.parametrize("name", ["000001.tar", "000001.index.npy"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "longer"])
def test_files_of_another_size_are_found_before_training(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    data = path.read_bytes()
    path.write_bytes(data[:300] if damage == "truncated" else data + b"0")
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError) as caught:
        _open(copy)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    expected = {
        "missing": "No such file or directory",
        "truncated": f"300 bytes instead of the {len(data)} of the manifest",
        "longer": f"{len(data) + 1} bytes instead of the {len(data)} of the manifest",
    }
    assert expected[damage] in message


def test_several_missing_shards_are_counted(copy: Path) -> None:
    (copy / "000000.tar").unlink()
    (copy / "000002.tar").unlink()
    with pytest.raises(UserError, match=r"000000\.tar: No such file or directory \(and 1 files more\)"):
        _open(copy)


def _overwrite(folder: Path, member: str, data: bytes) -> tuple[Path, str]:
    """Overwrites the beginning of one file of a sample; the shard and the sample's key."""
    shard = read_manifest(folder).shards[1]
    row = open_index(folder / shard.index_file, samples=shard.samples, members=MEMBERS)[2]
    with (folder / shard.file).open("r+b") as file:
        file.seek(spans_of(row, MEMBERS)[member].offset)
        file.write(data)
    return folder / shard.file, f"{int(row[0]):09d}"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("member", "data", "problem"),
    [
        (HR, b"\0" * 8, "hr.png does not decode: it is not a PNG file"),
        ("lr.png", b"\0" * 20, "lr.png does not decode: it is not a PNG file"),
        ("json", b"\0" * 4, "json is damaged: "),
        ("json", b"[1, 2]" + b" " * 100, "json is damaged: Input should be an object"),
    ],
)
def test_a_damaged_file_is_named_by_shard_and_key(
    copy: Path, workers: int, member: str, data: bytes, problem: str
) -> None:
    if member == "json":
        shard = read_manifest(copy).shards[1]
        row = open_index(copy / shard.index_file, samples=shard.samples, members=MEMBERS)[2]
        data = data[: spans_of(row, MEMBERS)["json"].size]
    path, key = _overwrite(copy, member, data)
    loader = DataLoader(_open(copy), batch_size=None, sampler=range(80), num_workers=workers)
    with pytest.raises(UserError) as caught:
        list(loaded(loader))
    assert str(caught.value).startswith(f"{path}: sample {key}: {problem}")
    assert "\n" not in str(caught.value)


def test_an_image_damaged_in_the_middle(copy: Path) -> None:
    shard = read_manifest(copy).shards[1]
    row = open_index(copy / shard.index_file, samples=shard.samples, members=MEMBERS)[0]
    span = spans_of(row, MEMBERS)[HR]
    with (copy / shard.file).open("r+b") as file:
        file.seek(span.offset + span.size // 2)
        file.write(b"\0" * 100)
    with pytest.raises(UserError, match=rf"{shard.file}: sample {int(row[0]):09d}: hr\.png does not decode: .+"):
        _epoch(_open(copy))


def test_a_shard_that_shrinks_while_training(copy: Path) -> None:
    dataset = _open(copy)
    path = copy / "000001.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"000001\.tar: sample \d{9}: the shard ends \d+ bytes before the sample does"):
        _epoch(dataset)


def test_a_shard_that_vanishes_while_training(copy: Path) -> None:
    dataset = _open(copy)
    (copy / "000001.tar").unlink()
    with pytest.raises(UserError, match=r"000001\.tar: cannot be opened: No such file or directory"):
        _epoch(dataset)


def test_an_index_that_is_damaged(copy: Path) -> None:
    path = copy / "000001.index.npy"
    path.write_bytes(b"0" * path.stat().st_size)
    with pytest.raises(UserError, match=r"000001\.index\.npy: cannot be read: "):
        _epoch(_open(copy))


def test_an_index_of_another_shard(copy: Path) -> None:
    manifest = read_manifest(copy)
    first, other = next(
        (a, b) for a in manifest.shards for b in manifest.shards if a.samples != b.samples and a.file != b.file
    )
    dataset = _open(copy)
    shutil.copy(copy / other.index_file, copy / first.index_file)
    with pytest.raises(UserError, match=f"is not the index of {first.samples} samples of 3 files"):
        _epoch(dataset)


def test_verifying(copy: Path) -> None:
    assert verify_shards(copy).samples == 23
    for name in ("000000.tar", "000002.index.npy"):
        data = bytearray((copy / name).read_bytes())
        data[-1] ^= 1
        (copy / name).write_bytes(data)
    (copy / "000003.tar").unlink()
    with pytest.raises(UserError) as caught:
        verify_shards(copy)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 of ")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        str(copy / name) for name in ("000000.tar", "000002.index.npy", "000003.tar")
    ]
    assert lines[1].endswith("its SHA-256 is not that of the manifest")
    assert lines[3].endswith("No such file or directory")
