from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from framer.evaluation.sheets import SheetRow, sheet_layout, write_sample_sheet

TITLE = "Held-out photographs"


def make_row(name: str, height: int, width: int, scale: int = 4, seed: int = 0) -> SheetRow:
    rng = np.random.default_rng(seed)
    bicubic, sr, hr = rng.random((3, height, width, 3))
    return SheetRow(name, rng.random((height // scale, width // scale, 3)), bicubic, sr, hr)


def read_png(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def as_8bit(image: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.rint(image * 255)


def test_pictures_are_on_the_sheet_pixel_for_pixel(tmp_path: Path) -> None:
    rows = [make_row("first", 256, 192, seed=1), make_row("second", 128, 256, scale=2, seed=2)]
    path = tmp_path / "samples" / "sheet.png"
    write_sample_sheet(path, rows, title=TITLE)
    layout = sheet_layout(rows, title=TITLE)
    sheet = read_png(path)
    assert (sheet.shape[1], sheet.shape[0]) == layout.size
    assert layout.zoom == 1
    for row, tiles in zip(rows, layout.tiles, strict=True):
        height, width = row.hr.shape[:2]
        scale = height // row.lr.shape[0]
        lr_enlarged = np.kron(as_8bit(row.lr), np.ones((scale, scale, 1)))
        expected = (lr_enlarged, as_8bit(row.bicubic), as_8bit(row.sr), as_8bit(row.hr))
        for (left, top), picture in zip(tiles, expected, strict=True):
            np.testing.assert_array_equal(sheet[top : top + height, left : left + width], picture)


def test_small_pictures_are_magnified_in_whole_pixels(tmp_path: Path) -> None:
    rows = [make_row("small", 64, 48)]
    caption = write_sample_sheet(tmp_path / "sheet.png", rows, title=TITLE)
    layout = sheet_layout(rows, title=TITLE)
    assert layout.zoom == 4
    assert "4 x 4 block" in caption
    left, top = layout.tiles[0][3]
    shown = read_png(tmp_path / "sheet.png")[top : top + 256, left : left + 192]
    np.testing.assert_array_equal(shown, np.kron(as_8bit(rows[0].hr), np.ones((4, 4, 1))))


def test_labels_stand_outside_the_pictures_and_quality_is_written_below(tmp_path: Path) -> None:
    row = make_row("name", 256, 256)
    black = SheetRow("name", row.lr * 0, row.bicubic * 0, row.sr * 0, row.hr * 0)
    path = tmp_path / "sheet.png"
    write_sample_sheet(path, [black], title=TITLE)
    sheet, tiles = read_png(path), sheet_layout([black], title=TITLE).tiles[0]
    for left, top in tiles:
        assert not sheet[top : top + 256, left : left + 256].any()
        assert sheet[top + 256 : top + 278, left : left + 256].min() < 128
        assert sheet[: top - 22, left : left + 256].min() < 128


@pytest.mark.parametrize("title", ["", "word " * 60, "unbreakable" * 40])
@pytest.mark.parametrize("name", ["", "x" * 500, "Ünïcode ✓"])
def test_any_title_and_name_leaves_the_margin_white(tmp_path: Path, title: str, name: str) -> None:
    path = tmp_path / "sheet.png"
    write_sample_sheet(path, [make_row(name, 32, 32)], title=title)
    sheet = read_png(path)
    assert (sheet[:, -10:] == 255).all()
    assert (sheet[-8:] == 255).all()


def test_rows_that_do_not_fit_together_are_refused_by_name(tmp_path: Path) -> None:
    good = make_row("good", 32, 32)
    path = tmp_path / "sheet.png"
    cases = [
        (SheetRow("odd", good.lr, good.bicubic, good.sr[:-1], good.hr), "odd: bicubic, SR and HR must have"),
        (SheetRow("odd", good.lr[:5], good.bicubic, good.sr, good.hr), "odd: HR must be an integer multiple"),
        (SheetRow("odd", good.lr[:4], good.bicubic, good.sr, good.hr), "odd: HR must be an integer multiple"),
        (
            SheetRow("odd", good.lr[..., 0], good.bicubic, good.sr, good.hr),
            r"odd: expected pictures \[H, W, 3\]",
        ),
        (
            SheetRow("odd", good.lr, good.bicubic, good.sr + 1, good.hr),
            r"odd, SR: values must lie in \[0, 1\]",
        ),
    ]
    for row, message in cases:
        with pytest.raises(ValueError, match=message):
            write_sample_sheet(path, [good, row], title=TITLE)
    with pytest.raises(ValueError, match="at least one photograph"):
        write_sample_sheet(path, [], title=TITLE)
    with pytest.raises(ValueError, match="zoom must be at least 1, got 0"):
        write_sample_sheet(path, [good], title=TITLE, zoom=0)
    assert not path.exists()
