from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import family_folders
import pytest
import torch

from framer.config.model import ModelConfig
from framer.models.latents import ImageLatents, build_latents

CPU = torch.device("cpu")


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 6, 10, generator=generator) * 2 - 1
    upsampled = torch.rand(2, 3, 6, 10, generator=generator) * 2 - 1
    return image, upsampled


@pytest.mark.parametrize(
    "space", [ImageLatents("pixel", 1.0), ImageLatents("residual", 5.0), ImageLatents("residual", 0.3)]
)
def test_decoding_undoes_encoding(space: ImageLatents, images: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, upsampled = images
    torch.testing.assert_close(space.decode(space.encode(image, upsampled), upsampled), image, rtol=0, atol=1e-6)


def test_pixel_latents_are_the_image(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, upsampled = images
    assert torch.equal(ImageLatents("pixel", 3.0).encode(image, upsampled), image)


def test_residual_latents_are_the_scaled_difference(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, upsampled = images
    torch.testing.assert_close(ImageLatents("residual", 6.0).encode(image, upsampled), 6 * image - 6 * upsampled)


def test_a_residual_of_zero_is_bicubic(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, upsampled = images
    assert torch.equal(ImageLatents("residual", 6.0).decode(torch.zeros_like(upsampled), upsampled), upsampled)


@pytest.mark.parametrize("kind", ["pixel", "residual"])
def test_decoded_images_stay_in_range(kind: str, images: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, upsampled = images
    decoded = ImageLatents(kind, 1.0).decode(torch.full_like(upsampled, 9.0), upsampled)  # type: ignore[arg-type]
    assert torch.equal(decoded, torch.ones_like(decoded))


@pytest.mark.parametrize("kind", ["pixel", "residual"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_not_clamped(kind: str, value: float, images: tuple[torch.Tensor, torch.Tensor]) -> None:
    latents = images[0].clone()
    latents[1, 2, 3, 4] = value
    space = ImageLatents(kind, 1.0)  # type: ignore[arg-type]
    assert torch.equal(space.decode(latents, images[1]).isfinite(), latents.isfinite())
    assert float(latents[1, 2, 3, 4]) == value or math.isnan(value)


def test_what_an_autoencoder_decodes_is_not_clamped_where_it_is_not_finite(tmp_path: Path) -> None:
    folder = family_folders.autoencoder(tmp_path / "vae")
    space = build_latents(ModelConfig(latents="vae", vae=str(folder)), CPU)
    latents, upsampled = torch.zeros(1, space.shape.channels, 4, 4), torch.zeros(1, 3, 8, 8)
    latents[..., 2, 2] = math.inf
    assert not space.decode(latents, upsampled).isfinite().any()  # through the normalisations
    assert space.vae is not None
    space.vae.decoder.conv_out.bias[1] = math.inf
    decoded = space.decode(torch.zeros_like(latents), upsampled)
    assert decoded.isfinite().all(dim=(-2, -1)).tolist() == [[True, False, True]]


def test_the_configuration_names_the_space() -> None:
    assert build_latents(ModelConfig(latents="residual", latents_scale=4.0), CPU) == ImageLatents("residual", 4.0)
    assert build_latents(ModelConfig(latents="pixel", latents_scale=4.0), CPU) == ImageLatents("pixel", 1.0)


def test_a_space_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ImageLatents().scale = 2.0  # type: ignore[misc]


def test_the_condition_of_pixels_is_the_image(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, upsampled = images
    space = ImageLatents("pixel", 1.0)
    assert torch.equal(space.condition(upsampled), upsampled)
    assert space.shape.condition_channels == 3


def test_the_condition_of_residuals_has_the_images_detail_beside_it() -> None:
    upsampled = torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    space = ImageLatents("residual", 5.0)
    condition = space.condition(upsampled)
    assert condition.shape == (2, space.shape.condition_channels, 24, 16)
    assert torch.equal(condition[:, :3], upsampled)
    window = upsampled[1, 2, 6:15, 3:12]
    torch.testing.assert_close(condition[1, 5, 10, 7], 5 * (upsampled[1, 2, 10, 7] - window.mean()))
    corner = upsampled[0, 0, :5, :5]
    torch.testing.assert_close(condition[0, 3, 0, 0], 5 * (upsampled[0, 0, 0, 0] - corner.mean()))


def test_a_plain_area_has_no_detail_up_to_its_border() -> None:
    condition = ImageLatents("residual", 5.0).condition(torch.full((1, 3, 12, 12), 0.7))
    torch.testing.assert_close(condition[:, 3:], torch.zeros(1, 3, 12, 12), rtol=0, atol=1e-5)
