"""Between floating point in ``[0, 1]`` and the 256 levels of a file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def to_bytes(image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Rounds ``float32`` values, clipped to ``[0, 1]``, to the nearest level, halves to the even one."""
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(image, 0.0, 1.0) * np.float32(255.0)).astype(np.uint8)
    return pixels


def from_bytes(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Levels as ``float32`` in ``[0, 1]``."""
    return pixels.astype(np.float32) / np.float32(255.0)
