"""Covering an image with overlapping tiles and blending what the model says of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

AxisWindow = Callable[[int, int], Tensor]
"""``(length, overlap) -> [length]``: blending weights along one side of a tile, all above 0."""


MIN_WEIGHT = 1e-4
"""Of a pixel at a feathered tile's edge; not 0, so that weights can be divided by their sum at the image's border."""


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Offsets of tiles that cover ``length``, neighbours sharing at least ``overlap``, the last one flush."""
    if length <= tile:
        return [0]
    count = -(-(length - tile) // (tile - overlap)) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def gaussian_axis(length: int, overlap: int = 0) -> Tensor:
    """Weights largest in the middle, with a standard deviation of a quarter of the length, whatever the overlap."""
    distance = (torch.arange(length, dtype=torch.float32) - (length - 1) / 2) / (length / 4)
    return torch.exp(-0.5 * distance.square())


def feathered_axis(length: int, overlap: int) -> Tensor:
    """Weights that rise smoothly within the overlap, from almost nothing in its outer quarter to 1.

    A tile's outermost pixels are the worst, computed beside zeros where the image goes on; they count only at the
    image's own border, where there is no other tile.
    """
    ramp = max(1, min(overlap, length // 2))
    distance = torch.arange(length, dtype=torch.float32) + 0.5
    distance = torch.minimum(distance, distance.flip(0))
    risen = ((distance - ramp / 4) / (ramp / 2)).clamp(0, 1)
    return torch.sin(torch.pi / 2 * risen).square().clamp(min=MIN_WEIGHT)


@dataclass(frozen=True)
class TileGrid:
    """Tiles of one size that cover an image.

    Attributes:
        height: Of a tile.
        width: Of a tile.
        rows: Offsets of the tiles from the top.
        columns: Offsets from the left.
    """

    height: int
    width: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def over(cls, size: tuple[int, int], *, tile: int, overlap: int, multiple: int = 1) -> TileGrid:
        """The grid over an image.

        Args:
            size: The image's height and width.
            tile: Height and width of a tile; the image's where it is smaller.
            overlap: Rows and columns that neighbours share at least, after rounding down to a multiple of ``multiple``;
                0 to below ``tile``.
            multiple: Offsets are multiples of this (the patch size).

        Raises:
            ValueError: The overlap is out of range, or more than one tile is needed and the tile's or the image's size
                is not a multiple of ``multiple``.
        """
        height, width = size
        if not 0 <= overlap < tile:
            raise ValueError(f"overlap {overlap} is not within 0 to below the tile size {tile}")
        if any(length > tile and (length % multiple or tile % multiple) for length in size):
            raise ValueError(f"image size {height}x{width} and tile size {tile} must be multiples of {multiple}")
        rows, columns = (
            tuple(
                start * multiple
                for start in tile_starts(length // multiple, min(tile, length) // multiple, overlap // multiple)
            )
            for length in size
        )
        return cls(min(tile, height), min(tile, width), rows, columns)

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The tiles' corners ``(y, x)``, row by row."""
        return ((y, x) for y in self.rows for x in self.columns)


def blend_tiles(
    function: Callable[..., Tensor],
    *images: Tensor,
    tile: int,
    overlap: int,
    multiple: int = 1,
    batch: int = 16,
    window: AxisWindow = gaussian_axis,
    device: torch.device | None = None,
) -> Tensor:
    """Applies ``function`` to overlapping tiles and returns their weighted mean.

    Beside ``images`` and the result, memory is that of ``batch`` tiles, whatever the images' size.

    Args:
        function: ``[b, C, tile, tile], ... -> [b, C', tile', tile']``, one argument an image; what it returns may be
            larger or smaller than its tiles by a factor, and so is the result.
        images: ``[B, C, H, W]``; further ones may be larger or smaller than the first by a factor, and are cut at the
            same places.
        tile: Height and width of a tile of the first image; the image's where it is smaller.
        overlap: Rows and columns that neighbours share at least, see :meth:`TileGrid.over`.
        multiple: Tile offsets are multiples of this (the patch size).
        batch: Tiles of one call.
        window: Weights of the blending.
        device: Where tiles go to be computed with; where the images are by default. The result is where the images are.

    Returns:
        ``[B, C', H, W]`` float32; H and W times the factor of ``function``.

    Raises:
        ValueError: The overlap is out of range, the image is empty, or more than one tile is needed and the tile's or
            the image's size is not a multiple of ``multiple``.
    """
    first = images[0]
    size, height, width = first.shape[0], first.shape[-2], first.shape[-1]
    grid = TileGrid.over((height, width), tile=tile, overlap=overlap, multiple=multiple)
    places = [(b, y, x) for b in range(size) for y, x in grid]
    if not places:
        raise ValueError(f"an image of shape {tuple(first.shape)} has no tile")

    def cut(image: Tensor, chosen: list[tuple[int, int, int]]) -> Tensor:
        down, across = image.shape[-2], image.shape[-1]
        high, wide = grid.height * down // height, grid.width * across // width
        corners = [(b, y * down // height, x * across // width) for b, y, x in chosen]
        tiles = torch.stack([image[b, :, y : y + high, x : x + wide] for b, y, x in corners])
        return tiles if device is None else tiles.to(device)

    blended = weights = None
    for start in range(0, len(places), batch):
        chosen = places[start : start + batch]
        out = function(*(cut(image, chosen) for image in images)).to(first.device, torch.float32)
        high, wide = out.shape[-2:]
        if blended is None or weights is None:
            shape = (size, out.shape[1], height * high // grid.height, width * wide // grid.width)
            blended = first.new_zeros(shape, dtype=torch.float32)
            weights = [window(length, length * overlap // tile).to(first.device) for length in (high, wide)]
            weight = torch.outer(*weights)
        for (b, y, x), value in zip(chosen, out, strict=True):
            top, left = y * high // grid.height, x * wide // grid.width
            blended[b, :, top : top + high, left : left + wide] += value * weight
    assert blended is not None and weights is not None  # noqa: PT018 (there is a tile)
    # The grid and the weights are products of their axes, and so is the sum of the weights at a pixel.
    down = [y * len(weights[0]) // grid.height for y in grid.rows]
    across = [x * len(weights[1]) // grid.width for x in grid.columns]
    blended /= _sum_of(weights[0], down, blended.shape[-2])[:, None]
    blended /= _sum_of(weights[1], across, blended.shape[-1])
    return blended


def _sum_of(weights: Tensor, starts: list[int], length: int) -> Tensor:
    """What the weights of all tiles along an axis add up to, ``[length]``."""
    total = weights.new_zeros(length)
    for start in starts:
        total[start : start + len(weights)] += weights
    return total
