"""Whether two images show the same: what tells a pair from images that were mixed up."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from framer.data.images import resize_bicubic

BLOCKS: Final = 4
"""Blocks a side whose mean colours are compared."""
LEAST_CORRELATION: Final = 0.8
"""Of the blocks' colours, below which images are taken for different ones, if these are also far apart."""
FAR: Final = 0.1
"""Root mean square difference of the blocks' colours, of 1, that tells different images; the noise of small blocks adds
`FAR_FOR_NOISE` over their side in LR pixels. Of 5000 pairs of `heavy` (64 to 512 pixels), those with less correlation
than `LEAST_CORRELATION` were at most 0.8 of the sum apart."""
FAR_FOR_NOISE: Final = 0.2
MOST_ENLARGEMENT_ERROR: Final = 0.04
"""Root mean square difference, of 1, between an enlarged LR image and what others' bicubic and 8 bits make of it."""

Pixels = npt.NDArray[np.uint8]


def shows_another_image(hr: Pixels, lr: Pixels) -> bool:
    """Whether an LR image is so unlike an HR image that no degradation explains it.

    Blur, noise and JPEG hardly change the mean colours of large blocks. Images are told apart where these colours are
    far apart and do not go together; nearly uniform images of one colour cannot be.

    Args:
        hr: ``uint8 [H, W, 3]``; H and W are multiples of those of ``lr``.
        lr: ``uint8 [h, w, 3]``.
    """
    high, low = _block_colours(hr, lr.shape), _block_colours(lr, lr.shape)
    distance = float(np.sqrt(np.mean((high - low) ** 2)))
    if distance <= FAR + FAR_FOR_NOISE * BLOCKS / min(lr.shape[:2]):
        return False
    high, low = high - high.mean((0, 1)), low - low.mean((0, 1))
    spread = float(np.sqrt(np.sum(high**2) * np.sum(low**2)))
    return float(np.sum(high * low)) <= LEAST_CORRELATION * spread


def is_enlargement(enlarged: Pixels, lr: Pixels) -> bool:
    """Whether an image is a bicubic enlargement of an LR image, of whichever bicubic.

    Args:
        enlarged: ``uint8 [H, W, 3]``.
        lr: ``uint8 [h, w, 3]``.
    """
    expected = np.clip(resize_bicubic(_unit(lr), (enlarged.shape[0], enlarged.shape[1])), 0, 1)
    return float(np.sqrt(np.mean((_unit(enlarged) - expected) ** 2))) <= MOST_ENLARGEMENT_ERROR


def _block_colours(image: Pixels, lr_shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Mean colours of the blocks, ``float64 [rows, columns, 3]``, cut at whole LR pixels."""
    sums, area = image.astype(np.float64) / 255.0, np.ones((*image.shape[:2], 1))
    for axis in (0, 1):
        factor, blocks = image.shape[axis] // lr_shape[axis], min(BLOCKS, lr_shape[axis])
        starts = factor * (np.arange(blocks) * lr_shape[axis] // blocks)
        sums, area = np.add.reduceat(sums, starts, axis=axis), np.add.reduceat(area, starts, axis=axis)
    colours: npt.NDArray[np.float64] = sums / area
    return colours


def _unit(pixels: Pixels) -> npt.NDArray[np.float32]:
    return pixels.astype(np.float32) / np.float32(255.0)
