from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framer.data.blur_kernels import KernelDraw
from framer.data.degradation_draws import DegradationDraw, JpegDraw, ResizeDraw, StageDraw, draw_degradation
from framer.data.degradations import apply_degradation
from framer.data.images import ImageError, read_image, write_png
from framer.data.levels import to_bytes
from framer.data.noise import NoiseDraw
from framer.data.photographs import bundled_photographs
from framer.data.presets import PRESETS
from framer.data.preview import draw_in_words, write_preview
from framer.errors import UserError

TRAIN = bundled_photographs("train")
# Left of the first column; top of the first picture below title and heading; zoom of crops of 64 pixels.
LEFT, TOP, ZOOM = 16, 68, 5
COLUMN = 5 * 64 + 14


def _write_photograph(folder: Path, name: str, size: int) -> Path:
    path = folder / f"{name}.png"
    write_png(path, read_image(TRAIN[0])[100 : 100 + size, 150 : 150 + size])
    return path


def test_pictures_are_pixel_for_pixel(tmp_path: Path) -> None:
    photograph = _write_photograph(tmp_path, "cup", 64)
    write_preview(tmp_path / "sheet.png", [photograph], crop_size=64, seed=3, crops=1)
    sheet = read_image(tmp_path / "sheet.png")
    image = read_image(photograph)
    shown = sheet[TOP : TOP + 64 * ZOOM, LEFT : LEFT + 64 * ZOOM]
    assert np.array_equal(shown, image.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1))
    hr = image.astype(np.float32) / np.float32(255.0)
    for column, name in enumerate(PRESETS, start=1):
        draw = draw_degradation(PRESETS[name], (64, 64), np.random.default_rng((3, 0, 0)))
        lr = to_bytes(apply_degradation(hr, draw).lr)
        left = LEFT + column * COLUMN
        shown = sheet[TOP : TOP + 64 * ZOOM, left : left + 64 * ZOOM]
        assert np.array_equal(shown, lr.repeat(4 * ZOOM, axis=0).repeat(4 * ZOOM, axis=1))


@pytest.mark.parametrize("crop_size", [32, 100, 256])
def test_nothing_runs_into_the_border(tmp_path: Path, crop_size: int) -> None:
    write_preview(tmp_path / "sheet.png", TRAIN, crop_size=crop_size, crops=2, draws=3, seed=1)
    sheet = read_image(tmp_path / "sheet.png")
    for border in (sheet[:12], sheet[-12:], sheet[:, :12], sheet[:, -12:]):
        assert (border == 255).all()
    assert (sheet < 128).any()


def test_sheets_depend_on_their_seed_alone(tmp_path: Path) -> None:
    sheets = []
    for number, seed in enumerate((0, 0, 1)):
        said = write_preview(tmp_path / f"new/{number}.png", TRAIN, crop_size=64, seed=seed, presets=["light"])
        assert said.startswith("3 crops of 64 x 64 pixels, 2 draws of each of light")
        sheets.append((tmp_path / f"new/{number}.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


def test_only_the_photographs_shown_are_read(tmp_path: Path) -> None:
    good = _write_photograph(tmp_path, "cup", 64)
    files = [good, tmp_path / "missing.png"]
    order = np.random.default_rng(0).permutation(2)
    files = [files[list(order).index(place)] for place in range(2)]
    write_preview(tmp_path / "sheet.png", files, crop_size=32, crops=1, draws=1)
    with pytest.raises(ImageError, match=r"missing\.png"):
        write_preview(tmp_path / "sheet.png", files, crop_size=32, crops=2, draws=1)


def test_one_photograph_does_for_several_crops(tmp_path: Path) -> None:
    write_preview(tmp_path / "sheet.png", TRAIN[:1], crop_size=32, crops=3, draws=1, presets=["heavy"])
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape[0] > 3 * 320


def test_draws_in_words() -> None:
    draw = DegradationDraw(
        shape=(64, 64),
        scale=4,
        sharpen_target=False,
        first=StageDraw(
            KernelDraw("generalized_aniso", 13, 2.0, 0.5, 0.3, 1.25),
            ResizeDraw(0.62, (40, 40), "cubic"),
            NoiseDraw("gaussian", True, 12.34, 1),
            JpegDraw(45),
        ),
        second=StageDraw(None, ResizeDraw(1.0, (16, 16), "area"), NoiseDraw("poisson", False, 1.2, 2), JpegDraw(62)),
        final_resize=ResizeDraw(1.0, (16, 16), "linear"),
        final_sinc=KernelDraw("sinc", 9, cutoff=0.63 * np.pi),
        jpeg_last=False,
    )
    first, second, end = draw_in_words(draw)
    assert first == (
        "1st: anisotropic generalised Gaussian blur 13 px sigma=2.00/0.50 beta=1.25, size x0.62 (bicubic), "
        "grey Gaussian noise sigma=12.3, JPEG 45"
    )
    assert second == "2nd: no blur, size kept, colour Poisson noise x1.20"
    assert end == "End: JPEG 62, to LR size (bilinear), sinc 9 px cutoff=0.63pi"


def test_words_of_the_end_follow_its_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        draw = draw_degradation(PRESETS["heavy"], (64, 64), rng)
        end = draw_in_words(draw)[2]
        assert (end.index("JPEG") > end.index("to LR size")) == draw.jpeg_last
        assert ("sinc" in end) == (draw.final_sinc is not None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"photographs": []}, UserError, "no photographs to show"),
        ({"crop_size": 30}, UserError, "crop_size must be a multiple of scale=4, got 30"),
        ({"crop_size": 128}, ImageError, r"cup\.png: 64x64 pixels are too few for crops of 128x128 pixels"),
        ({"presets": ["hevy"]}, UserError, "unknown degradation preset 'hevy'"),
        ({"presets": []}, ValueError, "positive scale, crops, draws and presets"),
        ({"draws": 0}, ValueError, "positive scale, crops, draws and presets"),
        ({"seed": -1}, ValueError, "a seed from 0 on"),
    ],
)
def test_impossible_sheets(tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    photographs = options.pop("photographs", [_write_photograph(tmp_path, "cup", 64)])
    with pytest.raises(error, match=message):
        write_preview(tmp_path / "sheet.png", photographs, **({"crop_size": 32} | options))
    assert not (tmp_path / "sheet.png").exists()
