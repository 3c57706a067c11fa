"""Folders in other projects' layouts, made from the bundled photographs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from framer.data.degradations import degradation_preset, degrade
from framer.data.images import read_image, resize_bicubic, write_png
from framer.data.layouts.base import Layout
from framer.data.photographs import bundled_photographs

SIZE, SCALE = 64, 4
TOKENS = 3
NAMES = ("0001", "0002", "0003", "0010", "b", "a")
# These differ from each other at a glance; crops of them do so too.
_STEMS = ("coffee", "china", "retina", "astronaut", "chelsea", "grace_hopper", "camera", "flower")


@cache
def photograph(number: int) -> npt.NDArray[np.uint8]:
    paths = [*bundled_photographs("train"), *bundled_photographs("heldout")]
    return read_image(next(path for path in paths if path.stem == _STEMS[number]))


def crop(number: int, height: int, width: int) -> npt.NDArray[np.float32]:
    """The middle of a photograph, ``float32 [height, width, 3]`` in ``[0, 1]``."""
    image = photograph(number % len(_STEMS))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width].astype(np.float32) / np.float32(255)


def embeddings(number: int, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """A prompt's embeddings, small numbers that half precision holds exactly."""
    generator = torch.Generator().manual_seed(number)
    prompt = torch.randint(-8, 8, (TOKENS, layout.prompt_channels), generator=generator).float() / 4
    return prompt, torch.randint(-8, 8, (layout.pooled_channels,), generator=generator).float() / 4


def latents(number: int, layout: Layout, height: int = SIZE, width: int = SIZE) -> torch.Tensor:
    """Latents of one image."""
    generator = torch.Generator().manual_seed(1000 + number)
    step = layout.latent_downscale
    return torch.randn(layout.latent_channels, height // step, width // step, generator=generator)


def make_layout(
    root: Path,
    layout: Layout,
    *,
    names: tuple[str, ...] = NAMES,
    sizes: tuple[tuple[int, int], ...] = ((SIZE, SIZE),),
    only: tuple[str, ...] | None = None,
    scale: int = SCALE,
    degradation: str = "light",
) -> Path:
    """A folder with the named subfolders of a layout, or all; sample ``i`` is of photograph ``i``."""
    subfolders = layout.subfolders if only is None else only
    for subfolder in subfolders:
        (root / subfolder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        height, width = sizes[number % len(sizes)]
        pair = degrade(
            crop(number, height, width), degradation_preset(degradation), np.random.default_rng(number), scale=scale
        )
        enlarged = np.clip(resize_bicubic(pair.lr, (height, width)), 0, 1)
        for subfolder, image in (("gt", pair.hr), ("lr", pair.lr), ("sr_bicubic", enlarged)):
            if subfolder in subfolders:
                write_png(root / subfolder / f"{name}.png", np.rint(image * 255).astype(np.uint8))
        if layout.texts in subfolders:
            (root / layout.texts / f"{name}.txt").write_text(f"Photograph {name}, é.\n", encoding="utf-8")
        tensors = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), embeddings(number, layout), strict=True))
        tensors |= {"latent_hr": latents(number, layout, height, width)}
        tensors |= {"latent_lr": latents(100 + number, layout, height, width)}
        for subfolder in layout.tensors:
            if subfolder in subfolders:
                torch.save(tensors[subfolder].half(), root / subfolder / f"{name}.pt")
    for (subfolder, file), tensor in zip(layout.null_tensors, embeddings(99, layout), strict=False):
        if subfolder in subfolders:
            torch.save(tensor, root / subfolder / file)
    return root
