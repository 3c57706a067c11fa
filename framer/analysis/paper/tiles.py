"""The images that models are analysed on, cut into tiles of one size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from framer.config.data import Degradation
from framer.data.dataset import heldout_pairs
from framer.data.images import find_images, image_name, read_image
from framer.data.photographs import bundled_photographs
from framer.errors import UserError


@dataclass(frozen=True)
class Tile:
    """One tile, as every model sees it.

    Attributes:
        number: Its number among all tiles, which its noise is drawn from.
        image: Number of the image that it is of.
        hr: The high-resolution tile ``[3, H, W]`` float32 in [-1, 1].
        upsampled: Its degraded version, bicubically upscaled to the same size.
    """

    number: int
    image: int
    hr: Tensor
    upsampled: Tensor


@dataclass(frozen=True)
class Tiles:
    """Tiles of several images.

    Attributes:
        names: The images' names, each once.
        paths: Their files.
        tiles: All tiles, image by image.
        left_out: Images that were not used because there were more than tiles allowed.
    """

    names: list[str]
    paths: list[Path]
    tiles: list[Tile]
    left_out: int

    def batches(self, size: int) -> Iterator[list[Tile]]:
        """Batches in which different images meet, so that images can be compared within a batch.

        Args:
            size: Most tiles of a batch.
        """
        by_image = [[tile for tile in self.tiles if tile.image == image] for image in range(len(self.names))]
        for first in range(0, len(by_image), size):
            together = by_image[first : first + size]
            rounds = max(1, size // len(together))
            longest = max(len(tiles) for tiles in together)
            for start in range(0, longest, rounds):
                places = range(start, min(start + rounds, longest))
                yield [tiles[place] for place in places for tiles in together if place < len(tiles)]


def find_photographs(source: str) -> list[Path]:
    """The files that ``heldout``, ``validation`` or a folder stands for.

    Raises:
        UserError: The folder is missing or holds no image.
    """
    if source == "heldout":
        return bundled_photographs("heldout")
    if source == "validation":
        return bundled_photographs("validation")
    return find_images(Path(source).expanduser())


def cut_tiles(paths: list[Path], *, tile: int, scale: int, degradation: Degradation, seed: int, most: int) -> Tiles:
    """Degrades images and cuts tiles out of them, spread evenly, the same for the same arguments.

    Args:
        paths: The images; of more than ``most`` that many are used, spread evenly.
        tile: Height and width of a tile in pixels.
        scale: Upscaling factor of the models.
        degradation: Preset that makes the low-resolution images.
        seed: Of the degradation.
        most: Most tiles in all.

    Raises:
        UserError: An image cannot be read or is smaller than a tile (all such images are named).
    """
    used = paths if len(paths) <= most else [paths[place * len(paths) // most] for place in range(most)]
    for_each = most // len(used)
    counts = _tiles_of_each(used, tile, for_each)
    tiles: list[Tile] = []
    for image, (path, count) in enumerate(zip(used, counts, strict=True)):
        pairs = heldout_pairs(
            [path], crop_size=tile, scale=scale, degradation=degradation, seed=seed, crops_per_photo=count
        )
        tiles += [Tile(len(tiles) + place, image, pair["hr"], pair["lr_upsampled"]) for place, pair in enumerate(pairs)]
    return Tiles(_names(used), used, tiles, len(paths) - len(used))


def stacked(tiles: list[Tile], device: torch.device) -> tuple[Tensor, Tensor]:
    """The tiles of a batch on a device: high-resolution and upscaled, each ``[B, 3, H, W]``."""
    return torch.stack([tile.hr for tile in tiles]).to(device), torch.stack([tile.upsampled for tile in tiles]).to(
        device
    )


def _tiles_of_each(paths: list[Path], tile: int, most: int) -> list[int]:
    counts, problems = [], []
    for path in paths:
        try:
            height, width = read_image(path).shape[:2]
        except UserError as error:
            problems.append(str(error))
            continue
        room = (height // tile) * (width // tile)
        if not room:
            problems.append(f"{path}: {width}x{height} pixels are fewer than a tile of {tile}x{tile}")
        counts.append(min(room, most))
    if problems:
        listed = "\n  ".join(problems)
        raise UserError(f"{len(problems)} of {len(paths)} images cannot be analysed:\n  {listed}")
    return counts


def _names(paths: list[Path]) -> list[str]:
    stems = [image_name(path) for path in paths]
    seen: dict[str, int] = {}
    names = []
    for stem in stems:
        seen[stem] = seen.get(stem, 0) + 1
        names.append(stem if stems.count(stem) == 1 else f"{stem} ({seen[stem]})")
    return names
