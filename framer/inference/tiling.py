"""Covering an image with overlapping tiles and blending what the model says of each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Offsets of tiles that cover ``length``, neighbours sharing at least ``overlap``, the last one flush."""
    if length <= tile:
        return [0]
    count = -(-(length - tile) // (tile - overlap)) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def gaussian_window(height: int, width: int) -> Tensor:
    """Blending weights ``[height, width]``, largest in the middle, with a standard deviation of a quarter tile."""

    def axis(n: int) -> Tensor:
        distance = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2) / (n / 4)
        return torch.exp(-0.5 * distance.square())

    return torch.outer(axis(height), axis(width))


def blend_tiles(
    function: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    tile: int,
    overlap: int,
    multiple: int = 1,
    batch: int = 16,
) -> Tensor:
    """Applies ``function`` to overlapping tiles and returns their gaussian-weighted mean.

    Args:
        function: ``[b, C, tile, tile] -> [b, C', tile, tile]``.
        image: ``[B, C, H, W]``.
        tile: Height and width of a tile; the image's where it is smaller.
        overlap: Rows and columns that neighbours share at least, after rounding down to a multiple of ``multiple``;
            0 to below ``tile``.
        multiple: Tile offsets are multiples of this (the patch size).
        batch: Tiles of one call.

    Returns:
        ``[B, C', H, W]`` float32.

    Raises:
        ValueError: The overlap is out of range, the image is empty, or more than one tile is needed and the tile's or
            the image's size is not a multiple of ``multiple``.
    """
    size, height, width = image.shape[0], image.shape[-2], image.shape[-1]
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} is not within 0 to below the tile size {tile}")
    if any(length > tile and (length % multiple or tile % multiple) for length in (height, width)):
        raise ValueError(f"image size {height}x{width} and tile size {tile} must be multiples of {multiple}")
    tile_h, tile_w = min(tile, height), min(tile, width)
    corners = [
        (y, x)
        for y in tile_starts(height // multiple, tile_h // multiple, overlap // multiple)
        for x in tile_starts(width // multiple, tile_w // multiple, overlap // multiple)
    ]
    corners = [(y * multiple, x * multiple) for y, x in corners]
    window = gaussian_window(tile_h, tile_w).to(image.device)
    weight = torch.zeros(height, width, device=image.device)
    for y, x in corners:
        weight[y : y + tile_h, x : x + tile_w] += window
    places = [(b, y, x) for b in range(size) for y, x in corners]
    blended: Tensor | None = None
    for start in range(0, len(places), batch):
        chosen = places[start : start + batch]
        out = function(torch.stack([image[b, :, y : y + tile_h, x : x + tile_w] for b, y, x in chosen]))
        if blended is None:
            blended = torch.zeros(size, out.shape[1], height, width, device=image.device)
        for (b, y, x), value in zip(chosen, out.float(), strict=True):
            blended[b, :, y : y + tile_h, x : x + tile_w] += value * window
    if blended is None:
        raise ValueError(f"an image of shape {tuple(image.shape)} has no tile")
    return blended / weight
