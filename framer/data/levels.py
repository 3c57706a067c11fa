"""Between floating point, in ``[0, 1]`` or ``[-1, 1]``, and the 256 levels of a file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor


def to_bytes(image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Rounds ``float32`` values, clipped to ``[0, 1]``, to the nearest level, halves to the even one."""
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(image, 0.0, 1.0) * np.float32(255.0)).astype(np.uint8)
    return pixels


def from_bytes(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Levels as ``float32`` in ``[0, 1]``."""
    return pixels.astype(np.float32) / np.float32(255.0)


def tensor_to_bytes(image: Tensor) -> npt.NDArray[np.uint8]:
    """An image ``[3, H, W]`` in ``[-1, 1]`` as levels ``uint8 [H, W, 3]``, clipped and rounded to the nearest."""
    levels = ((image + 1.0) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
    pixels: npt.NDArray[np.uint8] = levels.numpy().astype(np.uint8)
    return pixels
