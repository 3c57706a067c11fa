"""Changes of colour that make few photographs stand for many."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GAMMA_RANGE = (0.45, 2.2)
GAIN_RANGE = (0.3, 1.0)
SATURATION_RANGE = (0.0, 1.3)


def recolour(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Permutes the colour channels and draws gamma (log-uniform), brightness and saturation.

    Args:
        image: ``uint8 [H, W, 3]``.
        rng: Source of the draws.

    Returns:
        The changed image, ``uint8 [H, W, 3]``.
    """
    gamma = np.exp(rng.uniform(*np.log(GAMMA_RANGE)))
    gain = rng.uniform(*GAIN_RANGE)
    saturation = np.float32(rng.uniform(*SATURATION_RANGE))
    curve = (255 * gain * (np.arange(256) / 255) ** gamma).astype(np.float32)
    colours = curve[image[..., rng.permutation(3)]]
    grey = colours.mean(axis=-1, keepdims=True)
    changed: npt.NDArray[np.uint8] = np.clip(np.rint(grey + saturation * (colours - grey)), 0, 255).astype(np.uint8)
    return changed
