from __future__ import annotations

from typing import Any

import family_folders
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from framer.data.images import read_image
from framer.data.photographs import bundled_photographs
from framer.errors import UserError
from framer.inference.shared_statistics import SharedStatistics
from framer.inference.tiled_latents import AutoencoderTiles, TiledLatents
from framer.models.latents import ImageLatents, VaeLatents
from framer.models.pixel_condition import PixelCondition
from framer.planning.storages import PeakMemory


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> VaeLatents:
    folder = family_folders.autoencoder(tmp_path_factory.mktemp("tiles") / "vae")
    return VaeLatents(AutoencoderKL.from_pretrained(folder))


def picture(height: int, width: int) -> Tensor:
    """Smooth and coloured, as photographs mostly are, and everywhere a little rough."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.stack([torch.sin(rows / 9), torch.cos(columns / 7), torch.sin((rows + columns) / 13)])[None]
    rough = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) - 0.5
    return 0.7 * waves + 0.3 * rough


def tiled(latents: VaeLatents, encoded: int, overlap: float = 0.25) -> TiledLatents:
    return TiledLatents(latents, AutoencoderTiles(encoded, encoded // 2, overlap), None)


@pytest.mark.parametrize("size", [(32, 48), (48, 48), (2, 6)])
def test_one_tile_is_the_image_at_once(latents: VaeLatents, size: tuple[int, int]) -> None:
    image = picture(*size)
    one = tiled(latents, 48)
    reference = latents.reference(image)
    torch.testing.assert_close(one.reference(image), reference, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.of_upsampled(image), reference, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.decode(reference, image), latents.decode(reference, image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(50, 134), (96, 34), (70, 70)])
def test_any_size_comes_out_as_it_does_at_once(latents: VaeLatents, size: tuple[int, int]) -> None:
    image = picture(*size)
    reference = latents.reference(image)
    many = tiled(latents, 32)
    assert many.reference(image).shape == reference.shape
    assert many.decode(reference, image).shape == image.shape


def test_larger_tiles_differ_less_from_the_image_at_once(latents: VaeLatents) -> None:
    image = picture(160, 192)
    reference, at_once = latents.reference(image), latents.decode(latents.reference(image), image)

    def errors(side: int) -> tuple[float, float]:
        tiles = tiled(latents, side)
        encoded, decoded = tiles.reference(image) - reference, tiles.decode(reference, image) - at_once
        return float(encoded.std() / reference.std()), float(decoded.std() / at_once.std())

    small, large = errors(64), errors(128)
    assert large[0] < small[0] < 0.5
    assert large[1] < small[1] < 0.5


def test_feathered_tiles_meet_with_far_smaller_edges_than_tiles_side_by_side(latents: VaeLatents) -> None:
    image = torch.full((1, 3, 128, 300), 0.3)
    reference = latents.reference(image)

    def largest_step(overlap: float) -> float:
        inside = tiled(latents, 128, overlap).decode(reference, image)[..., 48:80, 48:-48]
        return float((inside[..., 1:] - inside[..., :-1]).abs().mean((0, 1, 2)).max())

    assert largest_step(0.25) < 0.1 * largest_step(0.0)


def test_shared_statistics_bring_tiles_nearer_to_the_image_at_once(latents: VaeLatents) -> None:
    path = next(path for path in bundled_photographs("heldout") if path.stem == "chelsea")
    image = torch.tensor(read_image(path)[:192, :256]).permute(2, 0, 1)[None] / 127.5 - 1
    reference, at_once = latents.reference(image), latents.decode(latents.reference(image), image)

    def errors(*, shared: bool) -> tuple[float, float]:
        tiles = TiledLatents(latents, AutoencoderTiles(128, 64, shared_statistics=shared), None)
        encoded, decoded = tiles.reference(image) - reference, tiles.decode(reference, image) - at_once
        return float(encoded.std() / reference.std()), float(decoded.std() / at_once.std())

    own, shared = errors(shared=False), errors(shared=True)
    assert shared[0] < 0.8 * own[0]
    assert shared[1] < 0.9 * own[1]
    # The autoencoder is as it was; one tile is still the image at once; images do not mix.
    assert torch.equal(latents.reference(image), reference)
    tiles = TiledLatents(latents, AutoencoderTiles(256, 128, shared_statistics=True), None)
    torch.testing.assert_close(tiles.reference(image), reference, rtol=1e-5, atol=1e-5)
    tiles = TiledLatents(latents, AutoencoderTiles(128, 64, shared_statistics=True), None)
    together = tiles.reference(torch.cat([image, -image]))
    torch.testing.assert_close(together[:1], tiles.reference(image), rtol=1e-5, atol=1e-5)


def test_statistics_of_the_image_itself_normalise_it_as_it_would_itself(latents: VaeLatents) -> None:
    image = picture(48, 64)
    expected = latents.reference(image)
    statistics = SharedStatistics(latents.vae)
    with statistics.measured():
        latents.reference(image)
    with statistics.applied():
        torch.testing.assert_close(latents.reference(image), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(latents.reference(0.5 * image), latents.reference(image), atol=1e-2)
    assert torch.equal(latents.reference(image), expected)


def test_memory_is_that_of_a_tile_and_of_the_images(latents: VaeLatents) -> None:
    tiles = tiled(latents, 32)

    def peak(side: int) -> tuple[int, int]:
        image = picture(side, side)
        with PeakMemory() as memory:
            tiles.decode(tiles.reference(image), image)
        return memory.peak, image.nbytes

    (one, _), (four, four_image), (sixteen, image) = peak(32), peak(56), peak(104)
    assert four - one < 4 * four_image
    assert sixteen - one < 4 * image
    with PeakMemory() as memory:
        latents.decode(latents.reference(picture(104, 104)), picture(104, 104))
    assert memory.peak > 4 * sixteen


def test_images_as_latents_are_left_as_they_are() -> None:
    image, space = picture(20, 12), ImageLatents("residual", 5.0)
    tiles = TiledLatents(space, AutoencoderTiles(8, 8), None)
    assert tiles.reference(image) is image
    assert torch.equal(tiles.decode(image, image), space.decode(image, image))
    assert torch.equal(tiles.condition(image), space.condition(image))


def test_pixels_folded_into_channels_are_the_same_in_tiles(latents: VaeLatents) -> None:
    image = picture(60, 84)
    space = PixelCondition(latents)
    tiles = TiledLatents(space, AutoencoderTiles(32, 16), None)
    torch.testing.assert_close(tiles.reference(image), space.reference(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("tiles", "says"),
    [
        ((33, 16), "VAE tile of 33 pixels: expected a multiple of 2"),
        ((0, 16), "VAE tile of 0 pixels"),
        ((32, 0), "VAE tile of 0 latent pixels: expected 1 or more"),
        ((32, 16, 1.0), "overlap 1.0 of VAE tiles"),
    ],
)
def test_tiles_that_do_not_fit(latents: VaeLatents, tiles: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        TiledLatents(latents, AutoencoderTiles(*tiles), None)
