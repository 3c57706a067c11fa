"""Damaged image files among photographs: read or named, never a crash, never another one's picture."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from framer.data.dataset import RealISRDataset
from framer.data.images import read_image

SIDE = 48
FORMATS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 90},
    "webp": {"format": "WEBP", "quality": 90},
    "tiff": {"format": "TIFF", "compression": "tiff_lzw"},
    "tif": {"format": "TIFF"},
}
HEADERS = [
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"RIFF\x10\0\0\0WEBP",
    b"II*\0",
    b"MM\0*",
    b"BM",
    b"GIF89a",
    b"%PDF",
]
COUNT = 600
DAMAGES = ("bits", "truncated", "header", "zeros", "empty", "untouched")


def _picture(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Smooth, and of colours of its own."""
    corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return np.asarray(corners.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _damaged(data: bytes, damage: str, rng: np.random.Generator) -> bytes:
    content = bytearray(data)
    if damage == "bits":
        # Often in the first bytes, where the sizes are.
        end = len(content) if rng.random() < 0.5 else min(64, len(content))
        for place in rng.integers(0, end, int(rng.integers(1, 12))):
            content[place] ^= 1 << int(rng.integers(8))
    elif damage == "truncated":
        del content[int(rng.integers(1, len(content))) :]
    elif damage == "header":
        header = HEADERS[int(rng.integers(len(HEADERS)))]
        content[: len(header)] = header
    elif damage == "zeros":
        start = int(rng.integers(len(content)))
        end = min(len(content), start + int(rng.integers(1, 200)))
        content[start:end] = bytes(end - start)
    elif damage == "empty":
        content.clear()
    return bytes(content)


def _write(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = []
    for number in range(COUNT):
        suffix, damage = list(FORMATS)[number % len(FORMATS)], DAMAGES[number // len(FORMATS) % len(DAMAGES)]
        buffer = io.BytesIO()
        Image.fromarray(_picture(rng)).save(buffer, **FORMATS[suffix])
        paths.append(folder / f"{number:03d}_{damage}.{suffix}")
        paths[-1].write_bytes(_damaged(buffer.getvalue(), damage, rng))
    return paths


@pytest.mark.filterwarnings("ignore")  # of Pillow's, about damage that it reads past
def test_each_file_is_read_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = _write(tmp_path / "photos")
    with caplog.at_level(logging.WARNING):
        dataset = RealISRDataset(
            paths, crop_size=SIDE, degradation="light", horizontal_flip=False, on_broken="skip", cache_bytes=0
        )
    skipped = {path for path in paths if any(f"{path}: " in message for message in caplog.messages)}
    assert skipped.isdisjoint(dataset.paths)
    assert skipped | set(dataset.paths) == set(paths)
    assert all(record.levelno == logging.WARNING and "\n" not in record.getMessage() for record in caplog.records)
    kinds = {path.stem.partition("_")[2] for path in skipped}
    assert kinds >= {"bits", "truncated", "header", "empty"}
    assert {path for path in paths if "untouched" in path.stem} <= set(dataset.paths)
    assert any("untouched" not in path.stem for path in dataset.paths)
    by_name = {path.stem: path for path in dataset.paths}
    seen = set()
    for index in range(len(dataset)):
        sample = dataset[index]
        # Read by itself, so that no other file can have a part in it.
        picture = read_image(by_name[sample["name"]])
        if picture.shape == (SIDE, SIDE, 3):
            pixels = ((sample["hr"] + 1) * 127.5).round().permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(pixels, picture)
        seen.add(sample["name"])
    assert seen == by_name.keys()
