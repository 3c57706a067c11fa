"""Sample sheets: LR, bicubic, SR and HR side by side, pixel for pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framer.evaluation.canvas import Canvas
from framer.evaluation.metrics import Image, psnr, ssim, to_8bit
from framer.lettering import load_font, shorten, wrap

COLUMNS = ("LR", "bicubic", "SR", "HR")
"""What the four columns show, from left to right."""

_MARGIN = 16
_COLUMN_GAP = 12
_ROW_GAP = 18
_LINE = 22
_MIN_COLUMN = 224
_COMFORTABLE_TILE = 256
_TITLE_SIZE, _HEAD_SIZE, _TEXT_SIZE = 18, 15, 13


@dataclass(frozen=True)
class SheetRow:
    """One photograph of the sheet; every picture is RGB floating point in [0, 1].

    Attributes:
        name: The photograph's name.
        lr: The degraded image ``[h, w, 3]``; ``H = k h`` and ``W = k w`` for an integer k.
        bicubic: Bicubic enlargement of ``lr``, ``[H, W, 3]``.
        sr: The super-resolved picture, ``[H, W, 3]``.
        hr: The original, ``[H, W, 3]``.
    """

    name: str
    lr: Image
    bicubic: Image
    sr: Image
    hr: Image


@dataclass(frozen=True)
class SheetLayout:
    """Where the pictures stand on the sheet, in pixels.

    Attributes:
        size: Width and height of the sheet.
        tiles: ``tiles[row][column]`` is the left and top pixel of a picture; columns as in :data:`COLUMNS`.
        zoom: Every pixel of bicubic, SR and HR covers ``zoom x zoom`` pixels of the sheet.
        title_lines: The title as broken into lines.
    """

    size: tuple[int, int]
    tiles: tuple[tuple[tuple[int, int], ...], ...]
    zoom: int
    title_lines: tuple[str, ...]


def sheet_layout(rows: Sequence[SheetRow], *, title: str, zoom: int | None = None) -> SheetLayout:
    """Computes where :func:`write_sample_sheet` puts the pictures.

    Args:
        rows: The photographs, at least one.
        title: The sheet's title; broken into lines where it is wider than the sheet.
        zoom: Integer magnification of every picture; by default the largest at which no side of a picture
            grows past 256 px, and 1 for larger pictures.

    Returns:
        The layout.

    Raises:
        ValueError: No rows, ``zoom`` below 1, or pictures whose shapes do not fit together (names the
            photograph).
    """
    if not rows:
        raise ValueError("a sample sheet needs at least one photograph")
    if zoom is not None and zoom < 1:
        raise ValueError(f"zoom must be at least 1, got {zoom}")
    for row in rows:
        _scale(row)
    if zoom is None:
        zoom = max(1, _COMFORTABLE_TILE // max(max(row.hr.shape[:2]) for row in rows))
    column = max(_MIN_COLUMN, zoom * max(row.hr.shape[1] for row in rows))
    width = 2 * _MARGIN + len(COLUMNS) * column + (len(COLUMNS) - 1) * _COLUMN_GAP
    title_lines = wrap(title, load_font(_TITLE_SIZE, bold=True), width - 2 * _MARGIN)
    top = _MARGIN + (len(title_lines) + 1) * _LINE + _MARGIN // 2
    tiles = []
    for row in rows:
        top += _LINE
        tiles.append(tuple((_MARGIN + index * (column + _COLUMN_GAP), top) for index in range(len(COLUMNS))))
        top += zoom * row.hr.shape[0] + _LINE + _ROW_GAP
    return SheetLayout((width, top - _ROW_GAP + _MARGIN), tuple(tiles), zoom, title_lines)


def write_sample_sheet(path: Path, rows: Sequence[SheetRow], *, title: str, zoom: int | None = None) -> str:
    """Writes a PNG with a row a photograph: LR, bicubic, SR and HR, with PSNR and SSIM below bicubic and SR.

    Bicubic, SR and HR are drawn pixel for pixel (or as ``zoom x zoom`` blocks) at the places that
    :func:`sheet_layout` returns; LR is enlarged to the same size by repeating its pixels.
    Nothing is filtered.

    Args:
        path: The PNG to create or replace; missing parent folders are made.
        rows: The photographs, at least one; sizes may differ between rows.
        title: The sheet's title.
        zoom: Integer magnification; see :func:`sheet_layout` for the default.

    Returns:
        A caption that says what the sheet shows.

    Raises:
        TypeError: A picture is not a floating-point array.
        ValueError: No rows, ``zoom`` below 1, shapes that do not fit together, or values outside [0, 1].
        OSError: The folder cannot be written to.
    """
    layout = sheet_layout(rows, title=title, zoom=zoom)
    canvas = Canvas(layout.size)
    for row, tiles in zip(rows, layout.tiles, strict=True):
        magnifications = (_scale(row) * layout.zoom, layout.zoom, layout.zoom, layout.zoom)
        for place, column, magnification in zip(tiles, COLUMNS, magnifications, strict=True):
            picture = to_8bit(getattr(row, column.lower()), name=f"{row.name}, {column}")
            canvas.put(place, picture, zoom=magnification)
    _write_labels(canvas, rows, layout)
    canvas.save(path)
    factor = " and ".join(str(scale) for scale in sorted({_scale(row) for row in rows}))
    return (
        f"From left to right: the LR image, its pixels repeated {factor} times to the size of the original; "
        "its bicubic enlargement; SR, the model's output; HR, the original. "
        + (f"Every pixel is shown as a {layout.zoom} x {layout.zoom} block. " if layout.zoom > 1 else "")
        + "PSNR and SSIM are against HR, over the picture shown."
    )


def _write_labels(canvas: Canvas, rows: Sequence[SheetRow], layout: SheetLayout) -> None:
    title_font, head_font = load_font(_TITLE_SIZE, bold=True), load_font(_HEAD_SIZE, bold=True)
    name_font, text_font = load_font(_TEXT_SIZE, bold=True), load_font(_TEXT_SIZE)
    lefts = [left for left, _ in layout.tiles[0]]
    inner_width = layout.size[0] - 2 * _MARGIN
    for number, line in enumerate(layout.title_lines):
        canvas.write((_MARGIN, _MARGIN + number * _LINE), line, title_font)
    heads_top = _MARGIN + len(layout.title_lines) * _LINE + _MARGIN // 2
    for left, column in zip(lefts, COLUMNS, strict=True):
        canvas.write((left, heads_top), column, head_font)
    for row, tiles in zip(rows, layout.tiles, strict=True):
        top = tiles[0][1]
        canvas.write((_MARGIN, top - 18), shorten(row.name, name_font, inner_width), name_font)
        captions = (
            f"{row.lr.shape[1]} x {row.lr.shape[0]} px, shown x{_scale(row) * layout.zoom}",
            _quality(row.bicubic, row.hr),
            _quality(row.sr, row.hr),
            f"{row.hr.shape[1]} x {row.hr.shape[0]} px" + (f", shown x{layout.zoom}" if layout.zoom > 1 else ""),
        )
        bottom = top + layout.zoom * row.hr.shape[0]
        for left, caption in zip(lefts, captions, strict=True):
            canvas.write((left, bottom + 4), caption, text_font, pale=True)


def _quality(picture: Image, hr: Image) -> str:
    decibel = psnr(picture, hr)
    return ("PSNR inf" if math.isinf(decibel) else f"PSNR {decibel:.2f} dB") + f"   SSIM {ssim(picture, hr):.4f}"


def _scale(row: SheetRow) -> int:
    """Returns k with ``H = k h`` and ``W = k w``, and refuses a row whose shapes do not fit together."""
    shapes = {column: list(getattr(row, column.lower()).shape) for column in COLUMNS}
    if any(len(shape) != 3 or shape[2] != 3 or 0 in shape for shape in shapes.values()):
        raise ValueError(f"{row.name}: expected pictures [H, W, 3], got {shapes}")
    if not shapes["bicubic"] == shapes["SR"] == shapes["HR"]:
        raise ValueError(f"{row.name}: bicubic, SR and HR must have the same shape, got {shapes}")
    scale, rest = divmod(shapes["HR"][0], shapes["LR"][0])
    if scale == 0 or rest or shapes["HR"][1] != scale * shapes["LR"][1]:
        raise ValueError(f"{row.name}: HR must be an integer multiple of LR, the same on both axes, got {shapes}")
    return int(scale)
