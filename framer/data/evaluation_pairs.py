"""Whole photographs and their low-resolution images as files, to upscale and to evaluate with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from framer.data.dataset import heldout_draws
from framer.data.degradations import degradation_preset
from framer.data.images import ImageError, read_image, write_png
from framer.data.samples import Crop, make_sample
from framer.errors import UserError
from framer.extras import require
from framer.files import write_text, writing

HR_FOLDER: Final = "hr"
LR_FOLDER: Final = "lr"
PAIRS_FILE: Final = "pairs.json"


def write_evaluation_pairs(
    paths: Sequence[Path], folder: Path, *, scale: int = 4, degradation: str = "light", seed: int = 0
) -> int:
    """Degrades whole photographs and writes both images of each under the photograph's name.

    A photograph is cut at the right and below to a multiple of ``scale``. Its degradation is drawn from (seed, file
    name), so it does not depend on the others; where the preset sharpens its target, so is the image in ``hr``, as in
    training. ``pairs.json`` says what the pairs were made by, and the same call again makes the same files.

    Args:
        paths: The photographs.
        folder: Gets ``hr/NAME.png`` and ``lr/NAME.png``.
        scale: Factor between both.
        degradation: Name of a preset.
        seed: Seed of the draws; not negative.

    Returns:
        How many pairs there are.

    Raises:
        UserError: There is no photograph, some cannot be read or are smaller than ``scale`` (each is named), two have
            one name, ``degradation`` is no preset, or the folder holds pairs made otherwise or cannot be written to.
    """
    if not paths:
        raise UserError("no photographs to make pairs of: the list of files is empty")
    preset = degradation_preset(degradation)
    twice = sorted(name for name, count in Counter(path.stem for path in paths).items() if count > 1)
    if twice:
        raise UserError(f"pairs are told by name, and more than one photograph is called {', '.join(twice[:10])}")
    _check_readable(paths, scale)
    settings: dict[str, int | str] = {"scale": scale, "degradation": degradation, "seed": seed}
    _check_settings(folder / PAIRS_FILE, settings)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / PAIRS_FILE, json.dumps(settings, indent=2) + "\n")
    require("cv2", extra="train").setNumThreads(1)
    progress = require("tqdm", extra="train").tqdm(paths, desc="pairs", unit="photograph")
    for path in progress:
        image = read_image(path)
        height, width = (side // scale * scale for side in image.shape[:2])
        sample = make_sample(
            image,
            Crop(top=0, left=0, height=height, width=width),
            preset,
            heldout_draws(path, 0, seed=seed),
            scale=scale,
            margin=0,
            index=0,
            name=path.stem,
        )
        for name, pixels in ((HR_FOLDER, sample["hr"]), (LR_FOLDER, sample["lr"])):
            target = folder / name / f"{path.stem}.png"
            with writing(target):
                write_png(target, _as_bytes(pixels))
    return len(paths)


def _check_readable(paths: Sequence[Path], scale: int) -> None:
    problems: list[str] = []
    for path in paths:
        try:
            height, width = read_image(path).shape[:2]
        except ImageError as error:
            problems.append(str(error))
        else:
            if min(height, width) < scale:
                problems.append(f"{path}: {width}x{height} pixels are too few for scale {scale}")
    if problems:
        listing = "\n  ".join(problems)
        raise UserError(f"{len(problems)} of {len(paths)} photographs cannot be used:\n  {listing}")


def _check_settings(path: Path, settings: dict[str, int | str]) -> None:
    if not path.is_file():
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; remove its folder, or give another one") from None
    if earlier != settings:
        raise UserError(f"{path.parent} holds pairs made with {earlier} (now {settings}); give another folder")


def _as_bytes(image: Tensor) -> npt.NDArray[np.uint8]:
    pixels = ((image + 1.0) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
    return pixels.numpy().astype(np.uint8)
