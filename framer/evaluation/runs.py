"""The folders of pictures that are compared, matched by the pictures' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from framer.data.images import find_images, read_image, resize_bicubic
from framer.errors import UserError
from framer.evaluation.protocols import Picture
from framer.listing import some_of

BICUBIC: Final = "bicubic"
"""Name of the run that enlarges the LR images."""

_NAMES_SHOWN = 20


class PictureFile(NamedTuple):
    """A picture on the disk.

    Attributes:
        path: The file.
        enlarged_to: Height and width that it is enlarged to by bicubic interpolation; None for as it is.
    """

    path: Path
    enlarged_to: tuple[int, int] | None = None

    def read(self) -> Picture:
        """The picture; one that is enlarged is rounded to 8 bit, as if it had been saved.

        Raises:
            ImageError: The file cannot be read.
        """
        picture = read_image(self.path)
        if self.enlarged_to is None:
            return picture
        enlarged = resize_bicubic(picture.astype(np.float32), self.enlarged_to)
        rounded: Picture = np.rint(enlarged.clip(0, 255)).astype(np.uint8)
        return rounded


@dataclass(frozen=True)
class Run:
    """A folder of pictures, one a photograph.

    Attributes:
        name: What tables call it.
        folder: Where the pictures lie.
        pictures: The files by the photographs' names, in sorted order.
    """

    name: str
    folder: Path
    pictures: Mapping[str, PictureFile]


def open_run(name: str, folder: Path) -> Run:
    """Lists the pictures of a folder and of those below it.

    A picture's name is its path in the folder without the last suffix, as in ``canon/0012``.

    Args:
        name: What tables call the run.
        folder: The folder.

    Returns:
        The run.

    Raises:
        UserError: The folder is missing or holds no image, or two files have the same name but for the suffix (all
            are named).
    """
    files: dict[str, list[Path]] = {}
    for path in find_images(folder):
        files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    twice = [" and ".join(path.name for path in paths) for paths in files.values() if len(paths) > 1]
    if twice:
        raise UserError(
            f"{folder}: more than one picture of the same photograph: {some_of(twice, _NAMES_SHOWN)}; keep one of "
            "each, for pictures are matched by their name without the suffix"
        )
    return Run(name, folder, {key: PictureFile(paths[0]) for key, paths in sorted(files.items())})


def check_names(runs: Sequence[Run]) -> list[str]:
    """Checks that every folder holds the same photographs.

    Args:
        runs: The folders, the one that the others are held against first.

    Returns:
        The photographs' names, in sorted order.

    Raises:
        UserError: A folder lacks photographs or has others; the message names all folders and photographs.
    """
    expected = runs[0]
    problems = []
    for run in runs[1:]:
        missing = [name for name in expected.pictures if name not in run.pictures]
        extra = [name for name in run.pictures if name not in expected.pictures]
        if missing:
            problems.append(f"{run.name} ({run.folder}) lacks {len(missing)}: {some_of(missing, _NAMES_SHOWN)}")
        if extra:
            problems.append(f"{run.name} ({run.folder}) has {len(extra)} others: {some_of(extra, _NAMES_SHOWN)}")
    if problems:
        raise UserError(
            f"the folders must hold the same photographs as {expected.name} ({expected.folder}, "
            f"{len(expected.pictures)} pictures), matched by file name without the suffix:\n  " + "\n  ".join(problems)
        )
    return list(expected.pictures)
