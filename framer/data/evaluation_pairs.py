"""Whole photographs and their low-resolution images as files, to upscale and to evaluate with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from framer.data.dataset import heldout_draws
from framer.data.degradations import degradation_preset
from framer.data.images import ImageError, image_name, read_image, write_png
from framer.data.levels import tensor_to_bytes
from framer.data.outputs import check_apart, sole_writer
from framer.data.presets import DegradationPreset
from framer.data.samples import Crop, make_sample
from framer.errors import UserError
from framer.extras import require
from framer.files import file_sha256, remove_partials, write_text, writing
from framer.listing import some_of

HR_FOLDER: Final = "hr"
LR_FOLDER: Final = "lr"
PAIRS_FILE: Final = "pairs.json"

_PHOTOGRAPHS: Final = "photographs"


def write_evaluation_pairs(
    paths: Sequence[Path],
    folder: Path,
    *,
    root: Path | None = None,
    scale: int = 4,
    degradation: str = "light",
    seed: int = 0,
) -> int:
    """Degrades whole photographs and writes both images of each under the photograph's name.

    A photograph is cut at the right and below to a multiple of ``scale``. Its degradation is drawn from (seed, file
    name), so it does not depend on the others; where the preset sharpens its target, so is the image in ``hr``, as in
    training. ``pairs.json`` says what the pairs were made of and by, and the same call again makes the same files; in
    ``hr`` and ``lr``, no other files are replaced.

    Args:
        paths: The photographs.
        folder: Gets ``hr/NAME.png`` and ``lr/NAME.png``.
        root: The folder that was searched for the photographs; None where they lie in no common one.
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
    check_apart("--evaluation-pairs", folder, paths, root)
    with sole_writer(folder):
        _check_readable(paths, scale)
        settings: dict[str, Any] = {"scale": scale, "degradation": degradation, "seed": seed}
        settings[_PHOTOGRAPHS] = {path.stem: file_sha256(path) for path in paths}
        _check_earlier(folder, settings)
        for each in (folder, folder / HR_FOLDER, folder / LR_FOLDER):
            remove_partials(each)
        write_text(folder / PAIRS_FILE, json.dumps(settings, indent=2) + "\n")
        _write_pairs(paths, folder, preset, scale=scale, seed=seed)
    return len(paths)


def _write_pairs(paths: Sequence[Path], folder: Path, preset: DegradationPreset, *, scale: int, seed: int) -> None:
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
            name=image_name(path),
        )
        for name, pixels in ((HR_FOLDER, sample["hr"]), (LR_FOLDER, sample["lr"])):
            target = folder / name / f"{path.stem}.png"
            with writing(target):
                write_png(target, tensor_to_bytes(pixels))


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


def _check_earlier(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / PAIRS_FILE
    if not path.is_file():
        for name in (HR_FOLDER, LR_FOLDER):
            if (folder / name).exists():
                raise UserError(
                    f"{folder / name} is there already, and no {PAIRS_FILE} beside it says that this command wrote it; "
                    "give another folder"
                )
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(earlier, dict) or not isinstance(earlier.get(_PHOTOGRAPHS), dict):
            raise ValueError(f"expected a mapping with {_PHOTOGRAPHS}")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; remove its folder, or give another one") from None
    changed = [
        f"{key} {json.dumps(earlier.get(key))} (now {json.dumps(value)})"
        for key, value in settings.items()
        if key != _PHOTOGRAPHS and earlier.get(key) != value
    ]
    before, now = earlier[_PHOTOGRAPHS], settings[_PHOTOGRAPHS]
    if before != now:
        differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        changed.append(f"other photographs ({some_of(differing)})")
    if changed:
        raise UserError(f"{folder} holds pairs made with {', '.join(changed)}; give another folder")
