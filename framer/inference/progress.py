"""How far a batch of images is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

REFRESH_SECONDS = 0.5


class Progress:
    """Says what is finished, how fast, and how long the rest takes: a line an image, and one that moves on a terminal.

    Args:
        images: How many there are.
        tiles: Tiles that the model is to see for all of them, steps counted one by one.
        stream: Where it is written; standard error by default.
        clock: Seconds.
    """

    def __init__(
        self, images: int, tiles: int, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.images = images
        self.tiles = tiles
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._start = self._shown = clock()
        self._finished_images = self._finished_tiles = self._settled_tiles = 0
        self._moving = ""

    def add_tiles(self, count: int) -> None:
        """Counts tiles of the current image."""
        self._finished_tiles += count
        if self._stream.isatty() and self._clock() - self._shown >= REFRESH_SECONDS:
            self._shown = self._clock()
            self._write_moving(f"[{self._finished_images + 1}/{self.images}] {self.rates()}")

    def finish_image(self, line: str, *, tiles: int) -> None:
        """Writes an image's line.

        Args:
            line: What became of it.
            tiles: How many tiles had been planned for it; those that it did not need are no longer waited for.
        """
        self._finished_images += 1
        self._settled_tiles += tiles
        self._finished_tiles = min(self._finished_tiles, self._settled_tiles)
        self.tiles -= self._settled_tiles - self._finished_tiles
        self._settled_tiles = self._finished_tiles
        self._write_moving("")
        self._stream.write(f"[{self._finished_images}/{self.images}] {line}; {self.rates()}\n")
        self._stream.flush()

    def rates(self) -> str:
        """Tiles and images a second, and the time left."""
        seconds = max(self._clock() - self._start, 1e-6)
        left = self.tiles - self._finished_tiles
        per_second = self._finished_tiles / seconds
        rates = f"{per_second:.3g} tiles/s, {self._finished_images / seconds:.2g} images/s"
        if not left:
            return rates
        return f"{rates}, {describe_seconds(left / per_second) if per_second else 'unknown time'} left"

    def _write_moving(self, line: str) -> None:
        if not self._stream.isatty():
            return
        self._stream.write("\r" + line.ljust(len(self._moving)) + ("\r" if not line else ""))
        self._stream.flush()
        self._moving = line


def describe_seconds(seconds: float) -> str:
    """A duration as people say it, such as ``45 s``, ``12 min`` or ``3 h 5 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
