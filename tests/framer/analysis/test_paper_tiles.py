"""The tiles that models are analysed on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from framer.analysis.paper.tiles import Tile, Tiles, cut_tiles
from framer.data.images import write_png
from framer.errors import UserError


def photographs(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate(sizes):
        paths.append(folder / f"photo{number}.png")
        write_png(paths[-1], rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return paths


def cut(paths: list[Path], most: int) -> Tiles:
    return cut_tiles(paths, tile=32, scale=4, degradation="light", seed=0, most=most)


def test_tiles_are_shared_out_among_the_images_and_are_the_same_again(tmp_path: Path) -> None:
    paths = photographs(tmp_path, (96, 96), (40, 80), (32, 32))
    tiles = cut(paths, 9)
    # The second image has room for two tiles, the third for one.
    assert [sum(tile.image == image for tile in tiles.tiles) for image in range(3)] == [3, 2, 1]
    assert [tile.number for tile in tiles.tiles] == list(range(6))
    again = cut(paths, 9)
    assert all(torch.equal(a.upsampled, b.upsampled) for a, b in zip(tiles.tiles, again.tiles, strict=True))
    assert all(tile.hr.shape == tile.upsampled.shape == (3, 32, 32) for tile in tiles.tiles)


def test_of_more_images_than_tiles_some_are_left_out_and_counted(tmp_path: Path) -> None:
    tiles = cut(photographs(tmp_path, *[(32, 32)] * 5), 2)
    assert (tiles.names, tiles.left_out) == (["photo0", "photo2"], 3)


def test_every_image_that_is_too_small_or_broken_is_named(tmp_path: Path) -> None:
    paths = photographs(tmp_path, (64, 64), (31, 64))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 of 3 images cannot be analysed") as refused:
        cut([*paths, broken], 3)
    assert "photo1.png: 64x31 pixels" in str(refused.value)
    assert "broken.png" in str(refused.value)


@pytest.mark.parametrize(("images", "each", "size"), [(4, 3, 8), (1, 5, 2), (5, 1, 2), (3, 4, 3), (2, 3, 1)])
def test_batches_hold_every_tile_once_and_different_images_together(images: int, each: int, size: int) -> None:
    blank = torch.zeros(3, 1, 1)
    tiles = [Tile(image * each + place, image, blank, blank) for image in range(images) for place in range(each)]
    batches = list(Tiles([f"{i}" for i in range(images)], [], tiles, 0).batches(size))
    assert sorted(tile.number for batch in batches for tile in batch) == list(range(images * each))
    assert max(map(len, batches)) <= size
    if images > 1 and size > 1:
        assert len({tile.image for tile in batches[0]}) == min(images, size)
