"""The sheet of pictures that ``framer evaluate`` leaves."""

from pathlib import Path

import numpy as np

from framer.data.images import read_image, write_png
from framer.evaluation.folders import Settings, evaluate_folders
from framer.evaluation.picture_sheet import write_picture_sheet


def sheet(tmp_path: Path, *runs: str, reference: str | None = "hr") -> tuple[str, np.ndarray]:
    evaluation = evaluate_folders(
        Settings(
            runs=tuple((run, tmp_path / run) for run in runs),
            reference=None if reference is None else tmp_path / reference,
            protocol="framer",
            metrics=("psnr",) if reference else ("niqe",),
            workers=0,
        )
    )
    caption = write_picture_sheet(tmp_path / "sheet.png", evaluation)
    return caption, read_image(tmp_path / "sheet.png")


def contains(sheet: np.ndarray, crop: np.ndarray) -> bool:
    large = crop.repeat(2, axis=0).repeat(2, axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (1, 8, 3))[:, :, 0]
    starts = np.argwhere((windows == large[:1, :8][None]).all(axis=(2, 3, 4)))
    height, width = large.shape[:2]
    return any(np.array_equal(sheet[y : y + height, x : x + width], large) for y, x in starts)


def test_each_photograph_is_shown_where_the_runs_differ_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    original = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    changed = original.copy()
    changed[90:150, 180:240] = 255 - changed[90:150, 180:240]
    write_png(tmp_path / "hr" / "a.png", original)
    write_png(tmp_path / "sr" / "a.png", changed)
    caption, pixels = sheet(tmp_path, "sr")
    assert caption.startswith("All photographs; of each the 96 x 96 pixels")
    # All that differs is within one square; of the squares that hold it, the first one is taken.
    assert contains(pixels, original[54:150, 144:240])
    assert contains(pixels, changed[54:150, 144:240])


def test_small_pictures_many_photographs_and_no_originals(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (96, 192, 3), dtype=np.uint8) for _ in range(9)]
    for number, picture in enumerate(pictures):
        write_png(tmp_path / "sr" / f"{number}.png", picture)
        write_png(tmp_path / "hr" / f"{number}.png", picture[:40, :30])
        write_png(tmp_path / "small" / f"{number}.png", picture[:40, :30])
    caption, pixels = sheet(tmp_path, "small")
    assert caption.startswith("6 of 9 photographs")
    shown = [number for number in range(9) if contains(pixels, pictures[number][:40, :30])]
    assert shown == [0, 1, 3, 4, 6, 7]
    caption, pixels = sheet(tmp_path, "sr", reference=None)
    assert contains(pixels, pictures[0][:, 48:144])
