from __future__ import annotations

import itertools

import pytest
import torch

from framer.inference.tiling import blend_tiles, gaussian_axis, tile_starts

SIZES = [(8, 8), (16, 16), (16, 40), (40, 16), (24, 36), (12, 52), (4, 4), (4, 20), (20, 4), (64, 8)]
TILINGS = [
    (tile, overlap, multiple)
    for tile, overlap, multiple in itertools.product([4, 8, 16, 20, 64], [0, 2, 4, 7, 10], [1, 2, 4])
    if overlap < tile
]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coordinates(height: int, width: int) -> torch.Tensor:
    """An image that says where each of its pixels is, ``[1, 2, H, W]``."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns])[None].float()


@pytest.mark.parametrize(("tile", "overlap", "multiple"), TILINGS)
def test_blending_the_image_itself_returns_it(tile: int, overlap: int, multiple: int) -> None:
    for height, width in SIZES:
        image = draw(2, 3, height, width)
        blended = blend_tiles(lambda tiles: tiles, image, tile=tile, overlap=overlap, multiple=multiple)
        torch.testing.assert_close(blended, image, rtol=3e-6, atol=1e-6, msg=f"{height}x{width}")


@pytest.mark.parametrize(("tile", "overlap", "multiple"), TILINGS)
def test_tiles_are_whole_on_the_grid_and_overlap_enough(tile: int, overlap: int, multiple: int) -> None:
    for height, width in SIZES:
        corners: list[tuple[int, int]] = []
        expected = (min(tile, height), min(tile, width))

        def record(tiles: torch.Tensor) -> torch.Tensor:
            assert tiles.shape[-2:] == expected  # noqa: B023
            corners.extend((int(one[0, 0, 0]), int(one[1, 0, 0])) for one in tiles)  # noqa: B023
            first = tiles[:, :, :1, :1]
            assert torch.equal(tiles - first, coordinates(*expected).expand(len(tiles), -1, -1, -1))  # noqa: B023
            return tiles

        blend_tiles(record, coordinates(height, width), tile=tile, overlap=overlap, multiple=multiple)
        assert len(set(corners)) == len(corners)
        assert all(y % multiple == 0 and x % multiple == 0 for y, x in corners)
        for axis, length in enumerate((height, width)):
            starts = sorted({corner[axis] for corner in corners})
            assert starts[0] == 0
            assert starts[-1] + expected[axis] == length
            shared = [a + expected[axis] - b for a, b in itertools.pairwise(starts)]
            assert all(rows >= overlap // multiple * multiple for rows in shared)


@pytest.mark.parametrize("length", range(1, 40))
def test_starts_cover_the_length_without_a_needless_tile(length: int) -> None:
    for tile, overlap in [(1, 0), (3, 0), (3, 2), (8, 0), (8, 1), (8, 4), (8, 7), (40, 20)]:
        starts = tile_starts(length, tile, overlap)
        covered = {place for start in starts for place in range(start, min(start + tile, length))}
        assert covered == set(range(length))
        assert starts[0] == 0
        assert starts[-1] == max(0, length - tile)
        assert all(overlap <= a + tile - b < tile for a, b in itertools.pairwise(starts))
        too_few = len(starts) - 1
        assert too_few == 0 or too_few * tile - (too_few - 1) * overlap < length


def test_without_overlap_each_pixel_is_of_one_tile() -> None:
    image = draw(1, 1, 16, 24)
    calls: list[torch.Tensor] = []

    def number_tiles(tiles: torch.Tensor) -> torch.Tensor:
        first = sum(len(call) for call in calls)
        calls.append(tiles)
        return (first + torch.arange(len(tiles))).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)

    blended = blend_tiles(number_tiles, image, tile=8, overlap=0)
    expected = torch.arange(6).view(2, 3).repeat_interleave(8, 0).repeat_interleave(8, 1)
    torch.testing.assert_close(blended[0, 0], expected.float(), rtol=0, atol=1e-6)


def test_the_weights_sum_to_one_everywhere() -> None:
    for height, width in SIZES:
        ones = blend_tiles(torch.ones_like, draw(1, 1, height, width), tile=8, overlap=3)
        torch.testing.assert_close(ones, torch.ones_like(ones), rtol=0, atol=1e-6)


def test_tiles_that_disagree_are_weighted_by_the_distance_to_their_centres() -> None:
    values = iter([0.0, 1.0])

    def disagree(tiles: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.full_like(tile, next(values)) for tile in tiles])

    blended = blend_tiles(disagree, torch.zeros(1, 1, 4, 12), tile=8, overlap=4)[0, 0]
    for x in range(12):
        near = [torch.tensor(-0.5 * ((x - start - 3.5) / 2) ** 2).exp() for start in (0, 4)]
        inside = [x < 8, x >= 4]
        first, second = (weight if on else 0.0 for weight, on in zip(near, inside, strict=True))
        assert blended[:, x].tolist() == pytest.approx([float(second / (first + second))] * 4, abs=1e-6)
    assert blended[0, 5] < 0.5 < blended[0, 6]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 4), (7, 10)])
def test_the_window_is_positive_symmetric_and_highest_in_the_middle(shape: tuple[int, int]) -> None:
    window = torch.outer(*map(gaussian_axis, shape))
    assert window.shape == shape
    assert (window > 0).all()
    torch.testing.assert_close(window, window.flip(0, 1))
    assert window.max() == window[shape[0] // 2, shape[1] // 2]


def test_the_function_may_change_the_number_of_channels() -> None:
    image = draw(2, 5, 12, 20)
    blended = blend_tiles(lambda tiles: tiles[:, :2] * 2, image, tile=8, overlap=2)
    torch.testing.assert_close(blended, image[:, :2] * 2, rtol=0, atol=1e-5)


def test_each_image_gets_its_own_tiles() -> None:
    first, second, other = (draw(1, 1, 12, 20, seed=seed) for seed in range(3))

    def blend(image: torch.Tensor, batch: int = 16) -> torch.Tensor:
        return blend_tiles(lambda tiles: tiles.square(), image, tile=8, overlap=4, batch=batch)

    together = blend(torch.cat([first, second]))
    assert torch.equal(together[:1], blend(torch.cat([first, other]))[:1])
    assert torch.equal(together, torch.cat([blend(first), blend(second)]))
    assert torch.equal(together, blend(torch.cat([first, second]), batch=1))


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_no_call_is_larger_than_asked(batch: int) -> None:
    sizes: list[int] = []

    def record(tiles: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tiles))
        return tiles

    blend_tiles(record, draw(2, 1, 20, 20), tile=8, overlap=4, batch=batch)
    assert max(sizes) <= batch
    assert sum(sizes) == 2 * 4 * 4


def test_half_precision_is_blended_in_float32() -> None:
    image = draw(1, 1, 16, 16)
    blended = blend_tiles(lambda tiles: tiles.bfloat16(), image, tile=8, overlap=4)
    assert blended.dtype == torch.float32
    torch.testing.assert_close(blended, image.bfloat16().float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_an_overlap_out_of_range(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"overlap {overlap} is not within 0 to below the tile size 8"):
        blend_tiles(lambda tiles: tiles, draw(1, 1, 16, 16), tile=8, overlap=overlap)


@pytest.mark.parametrize(("size", "tile"), [((18, 16), 8), ((16, 18), 8), ((16, 16), 10)])
def test_sizes_off_the_grid_would_leave_pixels_uncovered(size: tuple[int, int], tile: int) -> None:
    with pytest.raises(ValueError, match=f"image size {size[0]}x{size[1]} and tile size {tile} must be multiples of 4"):
        blend_tiles(lambda tiles: tiles, draw(1, 1, *size), tile=tile, overlap=0, multiple=4)


def test_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="has no tile"):
        blend_tiles(lambda tiles: tiles, draw(0, 1, 16, 16), tile=8, overlap=0)
