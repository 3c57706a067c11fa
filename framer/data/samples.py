"""One sample out of one photograph: the degraded region, cut to the crop, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from framer.data.augmentation import recolour
from framer.data.degradations import DegradationPreset, Degraded, degrade
from framer.data.images import resize_bicubic
from framer.data.levels import from_bytes


class Sample(TypedDict):
    """One training or evaluation sample; batched, each tensor gains a leading batch axis.

    Attributes:
        hr: ``float32 [3, height, width]`` in ``[-1, 1]``, the target.
        lr: ``float32 [3, height / scale, width / scale]`` in ``[-1, 1]``, 8-bit levels.
        lr_upsampled: ``float32 [3, height, width]`` in ``[-1, 1]``, `resize_bicubic` of `lr`, clamped.
        index: The sample's place in the stream; of held-out samples, its place in the list.
        name: The photograph's file name without suffix; of several held-out crops of one, with ``_<crop>``.
        prompt_embeds: ``float32 [T, D]``, the embeddings of the image's text; only where texts were prepared.
        pooled_prompt_embeds: ``float32 [P]``, likewise, for models that take one.
        hr_latents_mean: ``float32 [C, h, w]``, mean of the autoencoder's posterior of `hr`, neither shifted nor scaled;
            only where latents were prepared.
        hr_latents_logvar: ``float32 [C, h, w]``, its log-variance.
        lr_latents_mean: ``float32 [C, h, w]``, mean of the posterior of `lr_upsampled`.
    """

    hr: Tensor
    lr: Tensor
    lr_upsampled: Tensor
    index: int
    name: str
    prompt_embeds: NotRequired[Tensor]
    pooled_prompt_embeds: NotRequired[Tensor]
    hr_latents_mean: NotRequired[Tensor]
    hr_latents_logvar: NotRequired[Tensor]
    lr_latents_mean: NotRequired[Tensor]


class Crop(NamedTuple):
    """Where a crop is cut from a photograph, in pixels.

    Attributes:
        top: First row.
        left: First column.
        height: Number of rows.
        width: Number of columns.
        flip: Whether the crop is mirrored left to right.
        quarter_turns: Counter-clockwise quarter turns, after the mirroring.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    quarter_turns: int = 0


def draw_quarter_turns(rng: np.random.Generator, *, square: bool) -> int:
    """Draws a number of quarter turns under which the crop keeps its shape, with equal probabilities."""
    return int(rng.integers(4)) if square else 2 * int(rng.integers(2))


def make_sample(
    image: npt.NDArray[np.uint8],
    crop: Crop,
    preset: DegradationPreset,
    rng: np.random.Generator,
    *,
    scale: int,
    margin: int,
    index: int,
    name: str,
    colour_jitter: bool = False,
) -> Sample:
    """Degrades a crop together with its surroundings, cuts these off, and makes a sample of it.

    Args:
        image: The photograph, ``uint8 [H, W, 3]``.
        crop: The crop; it lies inside the photograph and its sides are multiples of `scale`.
        preset: The degradation.
        rng: Source of the degradation's draws.
        scale: Factor between HR and LR.
        margin: HR pixels to degrade around the crop, where the photograph has them.
        index: The sample's `index`.
        name: The sample's `name`.
        colour_jitter: Whether colours are changed before the degradation, see `recolour`.

    Returns:
        The sample.
    """

    def pair_of(region: npt.NDArray[np.uint8]) -> Degraded:
        if colour_jitter:
            region = recolour(region, rng)
        return degrade(from_bytes(region), preset, rng, scale=scale)

    lr, hr, _ = degraded_crop(image, crop, pair_of, scale=scale, margin=margin)
    return sample_of_pair(hr, lr, index=index, name=name)


def degraded_crop(
    image: npt.NDArray[np.uint8],
    crop: Crop,
    pair_of: Callable[[npt.NDArray[np.uint8]], Degraded],
    *,
    scale: int,
    margin: int,
) -> Degraded:
    """Degrades a crop together with its surroundings and cuts these off.

    Args:
        image: The photograph, ``uint8 [H, W, 3]``.
        crop: The crop; it lies inside the photograph and its sides are multiples of `scale`.
        pair_of: Degrades the crop with its margins, ``uint8 [H, W, 3]``.
        scale: Factor between HR and LR.
        margin: HR pixels to degrade around the crop, where the photograph has them.

    Returns:
        The pair, cut to the crop, and the draws, which are for the crop with its margins.
    """
    top, bottom, above = _with_margin(crop.top, crop.height, image.shape[0], margin, scale)
    left, right, before = _with_margin(crop.left, crop.width, image.shape[1], margin, scale)
    region = image[top:bottom, left:right]
    # Mirrored and turned before it is degraded: JPEG and the kernels are not symmetric.
    if crop.flip:
        region = region[:, ::-1]
        before = region.shape[1] - crop.width - before
    size = (crop.height, crop.width)
    for _ in range(crop.quarter_turns):
        above, before = region.shape[1] - size[1] - before, above
        region, size = np.rot90(region), size[::-1]
    degraded = pair_of(region)
    hr = degraded.hr[above:, before:][: size[0], : size[1]]
    lr = degraded.lr[above // scale :, before // scale :][: size[0] // scale, : size[1] // scale]
    return Degraded(lr=lr, hr=hr, draw=degraded.draw)


def sample_of_pair(hr: npt.NDArray[np.float32], lr: npt.NDArray[np.float32], *, index: int, name: str) -> Sample:
    """Upscales the LR image of a pair and makes tensors of all three.

    Args:
        hr: ``float32 [H, W, 3]`` in ``[0, 1]``.
        lr: ``float32 [H / scale, W / scale, 3]`` in ``[0, 1]``.
        index: The sample's `index`.
        name: The sample's `name`.

    Returns:
        The sample.
    """
    upsampled = np.clip(resize_bicubic(lr, (hr.shape[0], hr.shape[1])), 0.0, 1.0)
    return Sample(hr=_to_tensor(hr), lr=_to_tensor(lr), lr_upsampled=_to_tensor(upsampled), index=index, name=name)


def _with_margin(start: int, size: int, length: int, margin: int, scale: int) -> tuple[int, int, int]:
    """Start and end of a crop with its margins along one axis, and the crop's offset in between.

    The margins are multiples of the scale, so that the crop covers whole pixels of the region's LR.
    """
    before = min(margin, start) // scale * scale
    after = min(margin, length - start - size) // scale * scale
    return start - before, start + size + after, before


def _to_tensor(image: npt.NDArray[np.float32]) -> Tensor:
    """``[H, W, 3]`` in ``[0, 1]`` to ``[3, H, W]`` in ``[-1, 1]``."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).mul_(2.0).sub_(1.0)
