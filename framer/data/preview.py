"""A sheet that shows what the degradations make of photographs, with the draws in words."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from framer.data.blur_kernels import KernelDraw
from framer.data.dataset import DEFAULT_MARGIN
from framer.data.degradation_draws import DegradationDraw, ResizeDraw, StageDraw, draw_degradation
from framer.data.degradations import Degraded, apply_degradation, degradation_preset, sharpen
from framer.data.images import ImageError, image_name, read_image, resize_bicubic, write_png
from framer.data.levels import from_bytes, to_bytes
from framer.data.noise import NoiseDraw
from framer.data.presets import PRESETS, DegradationPreset
from framer.data.samples import Crop, degraded_crop
from framer.errors import UserError
from framer.extras import require
from framer.files import writing
from framer.lettering import load_font, shorten, wrap

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]

_COMFORTABLE_TILE = 320
_MIN_COLUMN = 256
_MARGIN = 16
_COLUMN_GAP = 14
_ROW_GAP = 20
_LINE, _TEXT_LINE = 22, 15
_PLACES = 8
_TITLE_SIZE, _HEAD_SIZE, _TEXT_SIZE = 18, 14, 12
_PAPER, _INK, _PALE_INK = (255, 255, 255), (20, 20, 20), (70, 70, 70)

_FAMILIES = {
    "iso": "Gaussian",
    "aniso": "anisotropic Gaussian",
    "generalized_iso": "generalised Gaussian",
    "generalized_aniso": "anisotropic generalised Gaussian",
    "plateau_iso": "plateau",
    "plateau_aniso": "anisotropic plateau",
}
_MODE_WORDS = {"area": "area", "linear": "bilinear", "cubic": "bicubic"}


@dataclass(frozen=True)
class _Tile:
    pixels: Pixels
    magnification: int
    head: str
    paragraphs: tuple[str, ...]


def write_preview(
    path: Path,
    photographs: Sequence[str | os.PathLike[str]],
    *,
    crop_size: int,
    scale: int = 4,
    seed: int = 0,
    presets: Sequence[str] = tuple(PRESETS),
    crops: int = 3,
    draws: int = 2,
    on_broken: Literal["skip", "error"] = "error",
) -> str:
    """Writes a PNG with HR crops beside what each preset makes of them, pixel for pixel.

    Photographs come in an order drawn from `seed`; of eight places drawn in one, the crop with most detail is shown. It
    is degraded with its surroundings, as in training. The presets of a row share their random numbers as far as their
    probabilities let them, so that a row compares their strengths; below each LR image stands what was drawn for it.
    LR pixels are repeated to the size of HR.

    Args:
        path: The PNG to create or replace; missing parent folders are made.
        photographs: Image files; only as many are read as there are crops.
        crop_size: Height and width of the HR crops in pixels; a multiple of `scale`.
        scale: Factor between HR and LR.
        seed: Seed of every draw; not negative.
        presets: Names of the presets, a column each.
        crops: HR crops.
        draws: Draws of each preset for each crop.
        on_broken: As in :class:`~framer.data.dataset.RealISRDataset`; `"skip"` goes on to other photographs.

    Returns:
        A sentence that says what the sheet shows.

    Raises:
        UserError: There is no photograph, one that is needed cannot be read or is smaller than the crop (with `"skip"`:
            so are all), a preset is not known, `crop_size` is no multiple of `scale`, or the file cannot be written.
        ValueError: Another argument is out of range.
    """
    if min(scale, crops, draws, len(presets)) < 1 or seed < 0:
        raise ValueError(
            f"expected a positive scale, crops, draws and presets and a seed from 0 on, got {scale}, {crops}, {draws}, "
            f"{list(presets)} and {seed}"
        )
    if crop_size < scale or crop_size % scale:
        raise UserError(f"crop_size must be a multiple of scale={scale}, got {crop_size}")
    if not photographs:
        raise UserError("no photographs to show: the list of files is empty")
    used = [degradation_preset(name) for name in presets]
    order = np.random.default_rng(seed).permutation(len(photographs))
    shown = _first_usable([Path(photographs[place]) for place in order], crops, crop_size, on_broken)
    blocks = [
        _block(*shown[number % len(shown)], number, used, crop_size, scale, seed, draws) for number in range(crops)
    ]
    title = (
        f"Degradations of {crop_size} x {crop_size} pixels to {crop_size // scale} x {crop_size // scale}, seed {seed}"
    )
    sheet = _drawn(title, [row for block in blocks for row in block])
    with writing(path):
        write_png(path, sheet)
    return (
        f"{crops} crops of {crop_size} x {crop_size} pixels, {draws} draws of each of {', '.join(presets)}; "
        f"every LR pixel is shown as a block."
    )


def draw_in_words(draw: DegradationDraw) -> tuple[str, str, str]:
    """Says what was drawn: the first round, the second up to its noise, and the end, in the order of application."""
    first, second = draw.first, draw.second
    final = [f"to LR size ({_MODE_WORDS[draw.final_resize.mode]})"]
    if draw.final_sinc is not None:
        final.append(_blur_in_words(draw.final_sinc))
    compression = f"JPEG {second.jpeg.quality}"
    end = [*final, compression] if draw.jpeg_last else [compression, *final]
    return (
        f"1st: {', '.join([*_stage_in_words(first), f'JPEG {first.jpeg.quality}'])}",
        f"2nd: {', '.join(_stage_in_words(second))}",
        f"End: {', '.join(end)}",
    )


def _stage_in_words(stage: StageDraw) -> list[str]:
    blur = "no blur" if stage.blur is None else _blur_in_words(stage.blur)
    return [blur, _resize_in_words(stage.resize), _noise_in_words(stage.noise)]


def _blur_in_words(kernel: KernelDraw) -> str:
    if kernel.shape == "sinc":
        return f"sinc {kernel.size} px cutoff={kernel.cutoff / np.pi:.2f}pi"
    sigma = f"{kernel.sigma_x:.2f}" + (f"/{kernel.sigma_y:.2f}" if kernel.shape.endswith("aniso") else "")
    beta = f" beta={kernel.beta:.2f}" if kernel.shape not in ("iso", "aniso") else ""
    return f"{_FAMILIES[kernel.shape]} blur {kernel.size} px sigma={sigma}{beta}"


def _resize_in_words(resize: ResizeDraw) -> str:
    return "size kept" if resize.factor == 1 else f"size x{resize.factor:.2f} ({_MODE_WORDS[resize.mode]})"


def _noise_in_words(noise: NoiseDraw) -> str:
    colour = "grey" if noise.gray else "colour"
    if noise.kind == "gaussian":
        return f"{colour} Gaussian noise sigma={noise.strength:.1f}"
    return f"{colour} Poisson noise x{noise.strength:.2f}"


def _first_usable(
    paths: Sequence[Path], count: int, crop_size: int, on_broken: Literal["skip", "error"]
) -> list[tuple[Path, Pixels]]:
    """Reads photographs until there are `count`, or no more."""
    usable: list[tuple[Path, Pixels]] = []
    problems: list[str] = []
    for path in paths:
        if len(usable) == count:
            break
        try:
            image = read_image(path)
            height, width = image.shape[:2]
            if min(height, width) < crop_size:
                raise ImageError(
                    f"{path}: {width}x{height} pixels are too few for crops of {crop_size}x{crop_size} pixels"
                )
        except ImageError as error:
            if on_broken == "error":
                raise
            problems.append(str(error))
        else:
            usable.append((path, image))
    if not usable:
        listing = "\n  ".join(problems)
        raise UserError(f"{len(problems)} of {len(paths)} photographs cannot be used:\n  {listing}")
    for problem in problems:
        logger.warning("skipped photograph %s", problem)
    return usable


def _block(
    path: Path,
    image: Pixels,
    number: int,
    presets: Sequence[DegradationPreset],
    crop_size: int,
    scale: int,
    seed: int,
    draws: int,
) -> list[list[_Tile | None]]:
    """The rows of one crop, a draw each; HR stands in the first, its sharpened version in the second."""
    crop = _detailed_crop(image, crop_size, np.random.default_rng((seed, number)))
    zoom = max(1, round(_COMFORTABLE_TILE / crop_size))
    inside = (slice(crop.top, crop.top + crop_size), slice(crop.left, crop.left + crop_size))
    first = _Tile(image[inside], zoom, f"HR: {image_name(path)}", (f"{crop_size} x {crop_size} pixels",))
    sharpening = [preset.name for preset in presets if preset.sharpen_target]
    below: list[_Tile | None] = [None] * (draws - 1)
    if sharpening and below:
        sharpened = to_bytes(sharpen(from_bytes(image))[inside])
        below[0] = _Tile(sharpened, zoom, "HR, sharpened", (f"the target of {' and '.join(sharpening)}",))
    rows: list[list[_Tile | None]] = []
    for draw, left in enumerate([first, *below]):
        row = [left]
        for preset in presets:

            def pair_of(region: Pixels, preset: DegradationPreset = preset, draw: int = draw) -> Degraded:
                rng = np.random.default_rng((seed, number, draw))
                size = (region.shape[0], region.shape[1])
                return apply_degradation(from_bytes(region), draw_degradation(preset, size, rng, scale=scale))

            degraded = degraded_crop(image, crop, pair_of, scale=scale, margin=DEFAULT_MARGIN)
            head = f"{preset.name}, draw {draw + 1}"
            row.append(_Tile(to_bytes(degraded.lr), zoom * scale, head, draw_in_words(degraded.draw)))
        rows.append(row)
    return rows


def _detailed_crop(image: Pixels, crop_size: int, rng: np.random.Generator) -> Crop:
    """Of the places drawn, the one whose crop has most contrast left at a quarter of its size."""
    height, width = image.shape[:2]
    places = [
        (int(rng.integers(height - crop_size + 1)), int(rng.integers(width - crop_size + 1))) for _ in range(_PLACES)
    ]

    def detail(place: tuple[int, int]) -> float:
        crop = from_bytes(image[place[0] : place[0] + crop_size, place[1] : place[1] + crop_size])
        small = resize_bicubic(crop, (max(1, crop_size // 4), max(1, crop_size // 4))).mean(axis=2)
        return float(np.abs(np.diff(small, axis=0)).sum() + np.abs(np.diff(small, axis=1)).sum())

    top, left = max(places, key=detail)
    return Crop(top, left, crop_size, crop_size)


def _drawn(title: str, rows: Sequence[Sequence[_Tile | None]]) -> Pixels:
    head_font, text_font, title_font = (
        load_font(_HEAD_SIZE, bold=True),
        load_font(_TEXT_SIZE),
        load_font(_TITLE_SIZE, bold=True),
    )
    tiles = [tile for row in rows for tile in row if tile is not None]
    column = max(_MIN_COLUMN, *(tile.pixels.shape[1] * tile.magnification for tile in tiles))
    picture_height = max(tile.pixels.shape[0] * tile.magnification for tile in tiles)
    lines = {
        id(tile): [line for paragraph in tile.paragraphs for line in wrap(paragraph, text_font, column)]
        for tile in tiles
    }
    heights = [
        _LINE + picture_height + 6 + _TEXT_LINE * max(len(lines[id(tile)]) for tile in row if tile is not None)
        for row in rows
    ]
    columns = len(rows[0])
    width = 2 * _MARGIN + columns * column + (columns - 1) * _COLUMN_GAP
    titles = wrap(title, title_font, width - 2 * _MARGIN)
    top = _MARGIN + len(titles) * _LINE + _MARGIN // 2
    height = top + sum(heights) + _ROW_GAP * (len(rows) - 1) + _MARGIN
    canvas = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    labels: list[tuple[int, int, _Tile]] = []
    for row, row_height in zip(rows, heights, strict=True):
        for place, tile in enumerate(row):
            if tile is None:
                continue
            left = _MARGIN + place * (column + _COLUMN_GAP)
            pixels = tile.pixels.repeat(tile.magnification, axis=0).repeat(tile.magnification, axis=1)
            canvas[top + _LINE : top + _LINE + pixels.shape[0], left : left + pixels.shape[1]] = pixels
            labels.append((left, top, tile))
        top += row_height + _ROW_GAP

    sheet = require("PIL.Image", extra="train").fromarray(canvas)
    pen: ImageDraw = require("PIL.ImageDraw", extra="train").Draw(sheet)
    for number, line in enumerate(titles):
        pen.text((_MARGIN, _MARGIN + number * _LINE), line, font=title_font, fill=_INK)
    for left, top, tile in labels:
        pen.text((left, top + 2), shorten(tile.head, head_font, column), font=head_font, fill=_INK)
        bottom = top + _LINE + picture_height + 4
        for number, line in enumerate(lines[id(tile)]):
            pen.text((left, bottom + number * _TEXT_LINE), line, font=text_font, fill=_PALE_INK)
    return np.array(sheet)
