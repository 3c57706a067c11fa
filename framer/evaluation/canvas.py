"""The white sheet that pictures are put on and labelled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from framer.data.images import write_png
from framer.evaluation.protocols import Picture
from framer.extras import require

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

_PAPER, _INK, _PALE_INK = (255, 255, 255), (20, 20, 20), (85, 85, 85)


class Canvas:
    """A sheet in the making; places are left and top in pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        """Starts a white sheet of a width and height."""
        self._image_module = require("PIL.Image", extra="train")
        self._image = self._image_module.new("RGB", size, _PAPER)
        self._draw = require("PIL.ImageDraw", extra="train").Draw(self._image)

    def put(self, place: tuple[int, int], picture: Picture, *, zoom: int) -> None:
        """Puts down a picture, every pixel as ``zoom x zoom`` pixels; nothing is filtered."""
        self._image.paste(self._image_module.fromarray(picture.repeat(zoom, axis=0).repeat(zoom, axis=1)), place)

    def write(self, place: tuple[int, int], text: str, font: FreeTypeFont, *, pale: bool = False) -> None:
        """Writes a line."""
        self._draw.text(place, text, font=font, fill=_PALE_INK if pale else _INK)

    def save(self, path: Path) -> None:
        """Writes the PNG, complete or not at all; missing parent folders are made."""
        write_png(path, np.array(self._image))
