from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from framer.data.dataset import RealISRDataset, heldout_pairs
from framer.data.images import read_image, resize_bicubic, write_png
from framer.data.photographs import bundled_photographs
from framer.data.stream import StreamSampler
from framer.errors import UserError

TRAIN = bundled_photographs("train")[:2]


def _dataset(**options: object) -> RealISRDataset:
    return RealISRDataset(TRAIN, **({"crop_size": 32} | options))  # type: ignore[arg-type]


def _write(path: Path, height: int, width: int, seed: int = 0) -> Path:
    write_png(path, np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    return path


@pytest.mark.parametrize("degradation", ["heavy", "light", "stablesr"])
def test_sample(degradation: str) -> None:
    sample = _dataset(degradation=degradation)[5]
    assert sample["hr"].shape == sample["lr_upsampled"].shape == (3, 32, 32)
    assert sample["lr"].shape == (3, 8, 8)
    for key in ("hr", "lr", "lr_upsampled"):
        tensor = sample[key]  # type: ignore[literal-required]
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert -1.0 <= tensor.min() <= tensor.max() <= 1.0
    levels = (sample["lr"] + 1.0) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0.0)
    lr = ((sample["lr"] + 1.0) / 2.0).permute(1, 2, 0).numpy()
    upsampled = np.clip(resize_bicubic(np.ascontiguousarray(lr), (32, 32)), 0.0, 1.0) * 2.0 - 1.0
    np.testing.assert_allclose(sample["lr_upsampled"].permute(1, 2, 0).numpy(), upsampled, atol=1e-6)
    assert sample["index"] == 5
    assert sample["name"] in {path.stem for path in TRAIN}


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    first, second = _dataset(seed=3), _dataset(seed=3, cache_bytes=0)
    for index in (0, 1, 1000):
        second[index + 7]
        a, b = first[index], second[index]
        assert a["name"] == b["name"]
        assert torch.equal(a["hr"], b["hr"])
        assert torch.equal(a["lr"], b["lr"])
    assert not torch.equal(first[0]["lr"], first[2]["lr"])
    assert not torch.equal(first[0]["lr"], _dataset(seed=4)[0]["lr"])


def test_every_epoch_visits_every_photograph_once_in_its_own_order(tmp_path: Path) -> None:
    paths = [_write(tmp_path / f"{i}.png", 8, 8) for i in range(7)]
    dataset = RealISRDataset(paths, crop_size=8)
    assert len(dataset) == 7
    epochs = [[dataset.photograph_at(0, 7 * epoch + place).stem for place in range(7)] for epoch in range(6)]
    assert all(sorted(epoch) == sorted(path.stem for path in paths) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert dataset[7 * 5 + 2]["name"] == epochs[5][2]


@pytest.mark.parametrize("margin", [0, 5])
def test_crops_reach_every_edge_and_flip_half_the_time(tmp_path: Path, margin: int) -> None:
    # Red counts columns and green counts rows, so that a pixel tells where it comes from.
    image = np.zeros((12, 16, 3), np.uint8)
    image[..., 0] = np.arange(16) * 10
    image[..., 1] = np.arange(12)[:, None] * 10
    write_png(tmp_path / "a.png", image)
    dataset = RealISRDataset([tmp_path / "a.png"], crop_size=8, margin=margin)
    corners, flips = set(), 0
    for index in range(300):
        hr = ((dataset[index]["hr"] + 1.0) * 12.75).round().int()
        columns = hr[0, 0].tolist()
        flipped = columns[0] > columns[-1]
        flips += flipped
        left, top = min(columns), int(hr[1, 0, 0])
        assert sorted(columns) == list(range(left, left + 8))
        corners.add((top, left))
    assert corners == {(top, left) for top in range(5) for left in range(9)}
    assert 110 < flips < 190
    straight = RealISRDataset([tmp_path / "a.png"], crop_size=8, horizontal_flip=False)
    assert all(straight[index]["hr"][0, 0, 0] < straight[index]["hr"][0, 0, -1] for index in range(20))
    # Mirroring must not move the crop: both datasets cut sample after sample at the same place.
    for index in range(40):
        mirrored, plain = dataset[index]["hr"], straight[index]["hr"]
        assert torch.equal(mirrored, plain) or torch.equal(mirrored.flip(-1), plain)


@pytest.mark.parametrize("margin", [0, 5, 32])
def test_lr_and_hr_are_of_the_same_place(tmp_path: Path, margin: int) -> None:
    blocks = np.random.default_rng(0).integers(0, 2, (12, 10), dtype=np.uint8) * 255
    write_png(tmp_path / "a.png", np.kron(blocks, np.ones((16, 16), np.uint8))[..., None].repeat(3, axis=2))
    dataset = RealISRDataset([tmp_path / "a.png"], crop_size=64, margin=margin)
    shifts = [(down, right) for down in (-4, -2, 0, 2, 4) for right in (-4, -2, 0, 2, 4)]
    agreement = dict.fromkeys(shifts, 0.0)
    for index in range(24):
        sample = dataset[index]
        inner = sample["hr"][:, 8:-8, 8:-8]
        for down, right in shifts:
            moved = sample["lr_upsampled"].roll((down, right), dims=(1, 2))[:, 8:-8, 8:-8]
            agreement[down, right] += float((inner * moved).mean()) / 24
    assert max(agreement, key=lambda shift: agreement[shift]) == (0, 0)
    # Blocks of four LR pixels in black and white survive the degradation; blocks of another place disagree.
    assert agreement[0, 0] > 0.6


def test_margin_replaces_invented_borders(tmp_path: Path) -> None:
    _write(tmp_path / "a.png", 96, 96)
    plain, wide = (
        RealISRDataset([tmp_path / "a.png"], crop_size=32, margin=margin, horizontal_flip=False) for margin in (0, 32)
    )
    for index in range(4):
        assert torch.equal(plain[index]["hr"], wide[index]["hr"])
        assert not torch.equal(plain[index]["lr"], wide[index]["lr"])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers(workers: int) -> None:
    dataset = _dataset()
    loader = DataLoader(dataset, batch_sampler=StreamSampler(3, 1, 2, start=1, stop=4), num_workers=workers)
    batches = list(loader)
    assert len(batches) == 3
    for step, batch in enumerate(batches, start=1):
        indices = [(step * 2 + 1) * 3 + i for i in range(3)]
        assert batch["index"].tolist() == indices
        assert batch["hr"].shape == (3, 3, 32, 32)
        for place, index in enumerate(indices):
            expected = dataset[index]
            assert torch.equal(batch["lr"][place], expected["lr"])
            assert torch.equal(batch["hr"][place], expected["hr"])
            assert batch["name"][place] == expected["name"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("degradation", ["heavy", "light", "stablesr"])
def test_all_bytes_are_the_same_for_any_workers_and_batch_size(degradation: str) -> None:
    dataset = _dataset(
        degradation=degradation, seed=11, quarter_turns=True, colour_jitter=True, rescale=(1.0, 0.5), cache_bytes=0
    )
    alone = [_bytes_of(dataset[index]) for index in range(12)]
    assert len(set(alone)) == 12
    for workers, batch_size in ((0, 4), (1, 3), (2, 2), (3, 1), (3, 6)):
        loader = DataLoader(
            dataset, batch_sampler=StreamSampler(batch_size, 0, 1, stop=12 // batch_size), num_workers=workers
        )
        assert [_bytes_of(sample) for batch in loader for sample in _samples_of(batch)] == alone


def _samples_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: values[place] for key, values in batch.items()} for place in range(len(batch["name"]))]


def _bytes_of(sample: Any) -> bytes:
    tensors = b"".join(sample[key].numpy().tobytes() for key in ("hr", "lr", "lr_upsampled"))
    return tensors + f"{int(sample['index'])} {sample['name']}".encode()


def test_pickled_dataset_gives_the_same_samples_and_leaves_the_cache_behind() -> None:
    dataset = _dataset(seed=1)
    data = pickle.dumps(dataset)
    assert len(data) < 10_000
    copy = pickle.loads(data)
    assert torch.equal(copy[9]["lr"], dataset[9]["lr"])


def test_opencv_runs_one_thread() -> None:
    cv2.setNumThreads(2)
    dataset = _dataset()
    assert cv2.getNumThreads() == 1
    data = pickle.dumps(dataset)
    cv2.setNumThreads(2)
    pickle.loads(data)
    assert cv2.getNumThreads() == 1


def test_cache_stays_within_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [_write(tmp_path / f"{i}.png", 16, 16) for i in range(3)]
    dataset = RealISRDataset(paths, crop_size=16, cache_bytes=2 * 16 * 16 * 3)
    reads: list[str] = []

    def read(path: Path) -> np.ndarray:
        reads.append(Path(path).name)
        return read_image(path)

    monkeypatch.setattr("framer.data.dataset.read_image", read)
    for index in range(9):
        dataset[index]
    assert reads == ["2.png"] * 3


def _folder_with_broken_files(tmp_path: Path) -> list[Path]:
    good = _write(tmp_path / "good.png", 32, 32)
    whole = TRAIN[1].read_bytes()
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(whole[: len(whole) // 2])
    text = tmp_path / "text.png"
    text.write_text("hello")
    return [truncated, good, text, _write(tmp_path / "small.png", 20, 40)]


def test_broken_files_are_all_named(tmp_path: Path) -> None:
    paths = _folder_with_broken_files(tmp_path)
    with pytest.raises(UserError, match="3 of 4 photographs cannot be used") as caught:
        RealISRDataset(paths, crop_size=32)
    message = str(caught.value)
    assert f"{tmp_path / 'truncated.jpg'}: cannot be read: image file is truncated" in message
    assert f"{tmp_path / 'text.png'}: not an image" in message
    assert f"{tmp_path / 'small.png'}: 40x20 pixels are too few for crops of 32x32 pixels" in message
    assert "good.png" not in message


def test_broken_files_are_skipped_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = _folder_with_broken_files(tmp_path)
    with caplog.at_level(logging.WARNING):
        dataset = RealISRDataset(paths, crop_size=32, on_broken="skip")
    assert dataset.paths == [tmp_path / "good.png"]
    assert dataset[3]["name"] == "good"
    assert len(caplog.messages) == 3
    for name, message in zip(("truncated.jpg", "text.png", "small.png"), caplog.messages, strict=True):
        assert message.startswith(f"skipped photograph {tmp_path / name}: ")


def test_nothing_left_after_skipping(tmp_path: Path) -> None:
    paths = [path for path in _folder_with_broken_files(tmp_path) if path.stem != "good"]
    with pytest.raises(UserError, match="3 of 3 photographs cannot be used"):
        RealISRDataset(paths, crop_size=32, on_broken="skip")


def test_file_that_vanishes_while_training_is_named(tmp_path: Path) -> None:
    dataset = RealISRDataset([_write(tmp_path / "a.png", 16, 16)], crop_size=16, cache_bytes=0)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png: cannot be read"):
        dataset[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"crop_size": 30}, UserError, "crop_size must be a multiple of scale=4, got 30"),
        ({"crop_size": 0}, UserError, "crop_size must be a multiple of scale=4, got 0"),
        ({"degradation": "bicubic"}, UserError, "'bicubic'; expected one of heavy, light, stablesr"),
        ({"crop_size": 2000}, UserError, r"coffee\.png: 600x400 pixels are too few for crops of 2000x2000"),
        ({"scale": 0}, ValueError, "scale must be at least 1, got 0"),
        ({"margin": -1}, ValueError, "margin must not be negative, got -1"),
        ({"seed": -1}, ValueError, "seed must not be negative, got -1"),
        ({"cache_bytes": -1}, ValueError, "cache_bytes must not be negative, got -1"),
        ({"on_broken": "ignore"}, ValueError, "on_broken must be 'skip' or 'error', got 'ignore'"),
    ],
)
def test_impossible_options(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _dataset(**options)


def test_no_photographs() -> None:
    with pytest.raises(UserError, match="the list of files is empty"):
        RealISRDataset([], crop_size=32)
    with pytest.raises(UserError, match="the list of files is empty"):
        heldout_pairs([], crop_size=32)


def test_indices_are_not_negative() -> None:
    with pytest.raises(IndexError, match="start at 0, got -1"):
        _dataset()[-1]


def test_numpy_indices_are_indices() -> None:
    dataset = _dataset()
    assert torch.equal(dataset[np.int64(4)]["lr"], dataset[4]["lr"])  # type: ignore[index]
    assert type(dataset[np.int64(4)]["index"]) is int  # type: ignore[index]


def test_heldout_is_the_centre_of_each_photograph() -> None:
    paths = bundled_photographs("heldout")
    samples = heldout_pairs(paths, crop_size=64)
    assert [sample["name"] for sample in samples] == ["astronaut", "chelsea", "flower", "grace_hopper"]
    assert [sample["index"] for sample in samples] == [0, 1, 2, 3]
    for path, sample in zip(paths, samples, strict=True):
        image = read_image(path).astype(np.float32) / 255.0
        top, left = (image.shape[0] - 64) // 2, (image.shape[1] - 64) // 2
        expected = image[top : top + 64, left : left + 64] * 2.0 - 1.0
        np.testing.assert_allclose(sample["hr"].permute(1, 2, 0).numpy(), expected, atol=1e-5)
        assert sample["lr"].shape == (3, 16, 16)


def test_heldout_does_not_depend_on_its_company() -> None:
    paths = bundled_photographs("heldout")
    together = heldout_pairs(paths, crop_size=64, seed=5)
    alone = heldout_pairs(paths[2:3], crop_size=64, seed=5)
    assert torch.equal(alone[0]["lr"], together[2]["lr"])
    assert not torch.equal(heldout_pairs(paths[2:3], crop_size=64, seed=6)[0]["lr"], alone[0]["lr"])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_heldout_crops_do_not_overlap(tmp_path: Path, count: int) -> None:
    image = np.zeros((70, 100, 3), np.uint8)
    image[..., 0] = np.arange(100) * 2
    image[..., 1] = np.arange(70)[:, None] * 2
    write_png(tmp_path / "a.png", image)
    samples = heldout_pairs([tmp_path / "a.png"], crop_size=32, crops_per_photo=count)
    assert len(samples) == len({sample["name"] for sample in samples}) == count
    covered = np.zeros((70, 100), int)
    for sample in samples:
        corner = ((sample["hr"][:2, 0, 0] + 1.0) * 63.75).round().int().tolist()
        covered[corner[1] : corner[1] + 32, corner[0] : corner[0] + 32] += 1
    assert covered.max() == 1
    assert covered.sum() == count * 32 * 32


def test_heldout_photograph_without_room(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.png", 70, 100)
    other = _write(tmp_path / "b.png", 64, 95)
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.png: 100x70 pixels have room for 6 crops of 32x32 .* not for 7") as caught:
        heldout_pairs([path, other, tmp_path / "c.png"], crop_size=32, crops_per_photo=7)
    assert str(caught.value).startswith("3 of 3 held-out photographs cannot be used:")
    assert "b.png: 95x64 pixels have room for 4 crops" in str(caught.value)
    with pytest.raises(UserError, match=r"a\.png: 100x70 pixels are too few for crops of 80x80"):
        heldout_pairs([path], crop_size=80)
    with pytest.raises(ValueError, match="crops_per_photo must be at least 1, got 0"):
        heldout_pairs([path], crop_size=32, crops_per_photo=0)
