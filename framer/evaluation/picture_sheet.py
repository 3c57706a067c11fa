"""The runs of an evaluation beside each other, where they differ most, for eyes to judge what numbers do not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from framer.evaluation.canvas import Canvas
from framer.evaluation.folders import Evaluation, Measured
from framer.evaluation.protocols import Picture
from framer.evaluation.runs import Run
from framer.lettering import load_font, shorten

SHEET_FILE: Final = "pictures.png"

_ROWS: Final = 6
_CROP: Final = 96
_ZOOM: Final = 2
_MARGIN, _GAP, _LINE = 16, 12, 20


class _Row(NamedTuple):
    name: str
    crops: list[Picture]
    """Of the originals, where there are some, then of the runs."""
    captions: list[list[str]]
    """Lines below each."""


def write_picture_sheet(path: Path, evaluation: Evaluation) -> str:
    """Writes a PNG with a row a photograph and a column a run, the originals first where there are some.

    Of each photograph the square of 96 pixels is shown in which the columns differ most, twice as large, its pixels
    repeated. Of more than six photographs, six are shown, spread evenly over the names.

    Args:
        path: The PNG to create or replace.
        evaluation: What was measured.

    Returns:
        A caption that says what the sheet shows.

    Raises:
        UserError: A picture can no longer be read.
        OSError: The folder cannot be written to.
    """
    columns = [*([] if evaluation.reference is None else [evaluation.reference]), *evaluation.runs]
    count = len(evaluation.names)
    chosen = sorted({index * count // min(_ROWS, count) for index in range(min(_ROWS, count))})
    rows = [_row(evaluation, columns, index) for index in chosen]
    _draw(path, rows, columns)
    shown = f"{len(rows)} of {count} photographs" if len(rows) < count else "All photographs"
    return (
        f"{shown}; of each the {_CROP} x {_CROP} pixels in which the columns differ most, every pixel as a "
        f"{_ZOOM} x {_ZOOM} block. Numbers are of the whole picture."
    )


def _row(evaluation: Evaluation, columns: list[Run], index: int) -> _Row:
    name = evaluation.names[index]
    pictures = [run.pictures[name].read() for run in columns]
    top, left = _most_different(pictures)
    captions = []
    for run in columns:
        values = [
            f"{result.metric.label} {result.values[run.name][index]:.{result.metric.decimals}f}"
            for result in evaluation.results
            if isinstance(result, Measured) and not result.of_sets and run.name in result.values
        ]
        captions.append(["original"] if run is evaluation.reference else values[:2])
    return _Row(name, [picture[top : top + _CROP, left : left + _CROP] for picture in pictures], captions)


def _most_different(pictures: list[Picture]) -> tuple[int, int]:
    """Top and left of the square in which the pictures differ most from each other; of one picture, the middle."""
    height, width = pictures[0].shape[:2]
    if len(pictures) == 1:
        return max(0, (height - _CROP) // 2), max(0, (width - _CROP) // 2)
    lowest, highest = pictures[0].astype(np.int16), pictures[0].astype(np.int16)
    for picture in pictures[1:]:
        lowest, highest = np.minimum(lowest, picture), np.maximum(highest, picture)
    spread = (highest - lowest).sum(axis=2, dtype=np.int64)
    sums = np.zeros((height + 1, width + 1), dtype=np.int64)
    sums[1:, 1:] = spread.cumsum(axis=0).cumsum(axis=1)
    tall, wide = min(_CROP, height), min(_CROP, width)
    squares: npt.NDArray[np.int64] = (
        sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    )
    top, left = np.unravel_index(int(squares.argmax()), squares.shape)
    return int(top), int(left)


def _draw(path: Path, rows: list[_Row], columns: list[Run]) -> None:
    side = _ZOOM * _CROP
    title_font, text_font = load_font(15, bold=True), load_font(12)
    heights = [_ZOOM * max(crop.shape[0] for crop in row.crops) for row in rows]
    lines = [max(map(len, row.captions)) for row in rows]
    width = 2 * _MARGIN + len(columns) * side + (len(columns) - 1) * _GAP
    height = (
        2 * _MARGIN
        + _LINE
        + sum(_LINE + tall + _LINE * (below + 1) for tall, below in zip(heights, lines, strict=True))
    )
    canvas = Canvas((width, height))
    lefts = [_MARGIN + number * (side + _GAP) for number in range(len(columns))]
    for left, run in zip(lefts, columns, strict=True):
        canvas.write((left, _MARGIN), shorten(run.name, title_font, side), title_font)
    top = _MARGIN + _LINE
    for row, tall, below in zip(rows, heights, lines, strict=True):
        canvas.write((_MARGIN, top + 2), shorten(row.name, text_font, width - 2 * _MARGIN), text_font)
        top += _LINE
        for left, crop, caption in zip(lefts, row.crops, row.captions, strict=True):
            canvas.put((left, top), crop, zoom=_ZOOM)
            for number, line in enumerate(caption):
                place = (left, top + tall + 2 + number * _LINE)
                canvas.write(place, shorten(line, text_font, side), text_font, pale=True)
        top += tall + _LINE * (below + 1)
    canvas.save(path)
