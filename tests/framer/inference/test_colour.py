from __future__ import annotations

import pytest
import torch
from torch import Tensor

from framer.inference.colour import REACH, STRIP, fix_colours, low_band, match_low_band, match_statistics


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def statistics(image: Tensor) -> Tensor:
    return torch.stack([image.mean((-2, -1)), image.std((-2, -1), correction=0)])


def test_statistics_become_those_of_the_low_resolution_image() -> None:
    restored, known = draw(2, 3, 300, 40), 0.3 * draw(2, 3, 300, 40, seed=1) + 0.2
    fixed = match_statistics(restored.clone(), known)
    torch.testing.assert_close(statistics(fixed), statistics(known), rtol=0, atol=1e-6)
    # Each channel is only scaled and shifted.
    slope = (fixed[0, 0] - fixed[0, 0].mean()) / (restored[0, 0] - restored[0, 0].mean())
    torch.testing.assert_close(slope, slope.mean().expand_as(slope), rtol=1e-3, atol=0)


def test_statistics_are_matched_once_and_for_all() -> None:
    restored, known = draw(1, 3, 30, 40), draw(1, 3, 30, 40, seed=1)
    once = match_statistics(restored, known).clone()
    torch.testing.assert_close(match_statistics(once.clone(), known), once, rtol=0, atol=1e-6)


def test_a_flat_image_takes_the_mean_alone() -> None:
    known = draw(1, 3, 8, 8)
    fixed = match_statistics(torch.full((1, 3, 8, 8), 0.5), known)
    torch.testing.assert_close(fixed, known.mean((-2, -1), keepdim=True).expand_as(fixed))


def test_the_low_band_is_a_mean_over_its_reach() -> None:
    size = 2 * REACH + 3
    impulse = torch.zeros(1, 1, size, size)
    impulse[..., REACH + 1, REACH + 1] = 1
    response = low_band(impulse)
    assert float(response.sum()) == pytest.approx(1, abs=1e-5)
    assert float(response.min()) >= 0
    assert response[0, 0, 1, REACH + 1] > 0
    assert not response[..., 0, :].any()
    assert not response[..., -1].any()
    torch.testing.assert_close(response, response.flip(-1))
    torch.testing.assert_close(response, response.transpose(-2, -1))


def test_a_cast_is_removed_and_detail_stays() -> None:
    known = low_band(draw(1, 3, 96, 80))
    detail = draw(1, 3, 96, 80, seed=1)
    detail -= low_band(detail)
    cast = torch.tensor([0.2, -0.1, 0.3]).view(1, 3, 1, 1)
    fixed = match_low_band(known + detail + cast, known)
    assert (fixed - known - detail).abs().mean() < 0.02
    assert (fixed - known - detail).mean((0, 2, 3)).abs().max() < 0.005


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (STRIP - 1, 9), (STRIP, 9), (STRIP + 1, 9), (3 * STRIP + 40, 9)])
def test_the_low_band_is_the_others_and_the_high_band_its_own_whatever_the_strips(
    size: tuple[int, int],
) -> None:
    restored, known = draw(2, 3, *size), draw(2, 3, *size, seed=1)
    expected = restored - low_band(restored) + low_band(known)
    torch.testing.assert_close(match_low_band(restored.clone(), known), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ["adain", "wavelet", "none"])
def test_an_image_of_the_right_colours_stays(method: str) -> None:
    image = draw(1, 3, 60, 50)
    fixed = fix_colours(image.clone(), image, method)  # type: ignore[arg-type]
    torch.testing.assert_close(fixed, image, rtol=0, atol=1e-6)
