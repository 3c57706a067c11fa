"""Text on pictures: the font, and fitting into a width."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from framer.extras import require

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont


def load_font(size: int, *, bold: bool = False) -> FreeTypeFont:
    """The font of all pictures, at a size in pixels."""
    # DejaVu comes with matplotlib, so the sheet looks the same on every machine and shows most alphabets.
    folder = Path(require("matplotlib", extra="train").get_data_path()) / "fonts" / "ttf"
    file = folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    loaded: FreeTypeFont = require("PIL.ImageFont", extra="train").truetype(str(file), size)
    return loaded


def wrap(text: str, font: FreeTypeFont, width: int) -> tuple[str, ...]:
    """Breaks a text into lines that are no wider than ``width`` pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(shorten(word, font, width))
    return tuple(lines)


def shorten(text: str, font: FreeTypeFont, width: int) -> str:
    """Cuts the middle out of a text that is too wide, for the ends of a file's name tell most."""
    if font.getlength(text) <= width:
        return text
    keep = len(text) // 2
    while keep > 1 and font.getlength(f"{text[:keep]}...{text[-keep:]}") > width:
        keep -= 1
    return f"{text[:keep]}...{text[-keep:]}"
