"""Which images are taken for a pair."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from layout_cases import crop, photograph

from framer.data.degradations import degradation_preset, degrade
from framer.data.layouts.content import is_enlargement, shows_another_image

Pixels = npt.NDArray[np.uint8]


def bytes_of(image: npt.NDArray[np.float32]) -> Pixels:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def heavy_pairs(count: int, size: int, seed: int) -> list[tuple[Pixels, Pixels]]:
    """Crops at random places of eight photographs in turn."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        image = photograph(number % 8)
        top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
        region = image[top : top + size, left : left + size].astype(np.float32) / np.float32(255)
        pair = degrade(region, degradation_preset("heavy"), rng)
        pairs.append((bytes_of(pair.hr), bytes_of(pair.lr)))
    return pairs


@pytest.mark.parametrize(("size", "count", "most_missed"), [(64, 240, 0.06), (256, 48, 0.02)])
def test_heavy_pairs_pass_and_swapped_ones_do_not(size: int, count: int, most_missed: float) -> None:
    pairs = heavy_pairs(count, size, seed=5)
    assert not any(shows_another_image(hr, lr) for hr, lr in pairs)
    # Neighbours in the list are of different photographs.
    missed = [not shows_another_image(hr, pairs[i - 1][1]) for i, (hr, _) in enumerate(pairs)]
    assert sum(missed) <= most_missed * count


@pytest.mark.slow
@pytest.mark.parametrize(("size", "count"), [(64, 4000), (128, 2000), (256, 800), (512, 200)])
def test_no_heavy_pair_is_refused(size: int, count: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(count):
        image = photograph(int(rng.integers(8)))
        if min(image.shape[:2]) >= size:
            top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
            region = image[top : top + size, left : left + size].astype(np.float32) / np.float32(255)
            pair = degrade(region, degradation_preset("heavy"), rng)
            assert not shows_another_image(bytes_of(pair.hr), bytes_of(pair.lr))


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_uniform_images(level: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        pair = degrade(np.full((64, 64, 3), level, np.float32), degradation_preset("heavy"), rng)
        assert not shows_another_image(bytes_of(pair.hr), bytes_of(pair.lr))
    other = bytes_of(crop(0, 64, 64))[::4, ::4]
    assert shows_another_image(np.full((64, 64, 3), round(255 * level), np.uint8), other)
    assert shows_another_image(bytes_of(crop(0, 64, 64)), np.full((16, 16, 3), round(255 * level), np.uint8))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 2), (5, 7), (17, 23)])
def test_images_of_few_pixels_and_odd_sides(shape: tuple[int, int]) -> None:
    hr = bytes_of(crop(1, shape[0] * 4, shape[1] * 4))
    lr = hr.reshape(shape[0], 4, shape[1], 4, 3).mean((1, 3)).astype(np.uint8)
    assert not shows_another_image(hr, lr)
    if min(shape) > 4:
        assert shows_another_image(hr, 255 - lr)


def test_any_bicubic_is_an_enlargement_and_another_image_is_none() -> None:
    pairs = heavy_pairs(16, 128, seed=1)
    for number, (_, lr) in enumerate(pairs):
        tensor = torch.from_numpy(lr).permute(2, 0, 1)[None].float()
        # Torch's kernel has a = -0.75, as the scripts of these layouts use it, Pillow's a = -0.5.
        enlarged = F.interpolate(tensor, (128, 128), mode="bicubic")[0].clamp(0, 255).round()
        assert is_enlargement(enlarged.byte().permute(1, 2, 0).numpy(), lr)
        assert not is_enlargement(pairs[number - 1][0], lr)
