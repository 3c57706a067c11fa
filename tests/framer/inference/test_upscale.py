"""Upscaling with the bundled base model: sizes, seeds, tiles and memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from framer.data.images import read_image, resize_bicubic
from framer.data.photographs import bundled_photographs
from framer.errors import UserError
from framer.inference.load import RestoringModel, load_restoring_model
from framer.inference.pictures import Picture
from framer.inference.upscale import Upscaler
from framer.planning.storages import PeakMemory

PATCH = 4


@pytest.fixture(scope="module")
def model() -> RestoringModel:
    return load_restoring_model("base")


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """A held-out one, 40 x 56 pixels, shrunk from the middle of chelsea."""
    path = next(path for path in bundled_photographs("heldout") if path.stem == "chelsea")
    crop = read_image(path)[50:210, 100:324].astype(np.float32) / 255
    return np.clip(resize_bicubic(crop, (40, 56)), 0, 1)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize("size", [(1, 1), (3, 60), (16, 16), (17, 5)])
@pytest.mark.parametrize("scale", [1, 3, 4])
def test_any_image_becomes_exactly_the_factor_as_large(
    size: tuple[int, int], scale: int, model: RestoringModel
) -> None:
    result = Upscaler(model.restorer(), scale)(draw(*size, 3), seed=0)
    assert result.shape == (size[0] * scale, size[1] * scale, 3)
    assert result.dtype == np.float32
    assert 0 <= result.min() <= result.max() <= 1


def test_a_photograph_is_nearer_to_the_original_than_bicubic(model: RestoringModel) -> None:
    path = next(path for path in bundled_photographs("heldout") if path.stem == "flower")
    original = read_image(path)[100:228, 200:328].astype(np.float32) / 255
    lr = np.clip(resize_bicubic(original, (32, 32)), 0, 1)
    restored = Upscaler(model.restorer(), 4)(lr, seed=0)
    bicubic = np.clip(resize_bicubic(lr, (128, 128)), 0, 1)
    # Shrunk without any other degradation, an image that the model was not trained for: it must at least not spoil it.
    assert np.square(restored - original).mean() < 1.5 * np.square(bicubic - original).mean()
    assert np.abs(restored - bicubic).mean() > 0.005


def test_what_an_image_becomes_depends_on_it_and_the_seed_alone(model: RestoringModel, photograph: np.ndarray) -> None:
    upscaler = Upscaler(model.restorer(), 4)
    first = upscaler(photograph, seed=0)
    before = photograph.copy()
    upscaler(draw(5, 5, 3), seed=0)
    torch.manual_seed(17)
    assert np.array_equal(upscaler(photograph, seed=0), first)
    assert np.array_equal(photograph, before)
    assert np.abs(upscaler(photograph, seed=1) - first).max() > 0.01


def test_the_number_of_tiles_at_once_changes_rounding_alone(model: RestoringModel, photograph: np.ndarray) -> None:
    one, many = (Upscaler(model.restorer(tile_batch=batch), 4)(photograph, seed=0) for batch in (1, 16))
    np.testing.assert_allclose(one, many, rtol=0, atol=1e-4)


def test_tiles_are_counted_as_planned(model: RestoringModel, photograph: np.ndarray) -> None:
    upscaler, counted = Upscaler(model.restorer(num_inference_steps=2), 4), []
    upscaler(photograph, seed=0, on_tiles=counted.append)
    assert sum(counted) == 2 * upscaler.tiles(40, 56) == 2 * 3 * 5


def test_tiling_changes_less_than_the_model_does(model: RestoringModel, photograph: np.ndarray) -> None:
    # 128 pixels are the most that the model has positions for; it was trained at 64 and sees other positions there.
    lr = photograph[4:36, 12:44]
    whole, tiled = (Upscaler(model.restorer(tile=tile), 4)(lr, seed=0) for tile in (128, None))
    difference = np.abs(whole - tiled)
    assert 0.002 < difference.mean() < 0.03
    assert np.quantile(difference, 0.99) < 0.12
    assert difference.mean() < np.abs(whole - np.clip(resize_bicubic(lr, (128, 128)), 0, 1)).mean()


def steps_between_columns(image: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(image, axis=1)).mean(axis=(0, 2))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["photograph", "flat"])
def test_there_is_no_seam_where_tiles_begin_and_end(
    kind: str, steps: int, model: RestoringModel, photograph: np.ndarray
) -> None:
    restorer = model.restorer(num_inference_steps=steps)
    lr = np.full((40, 56, 3), 0.4, np.float32) if kind == "flat" else photograph
    upsampled = np.clip(resize_bicubic(lr, (160, 224)), 0, 1)
    added = Upscaler(restorer, 4)(lr, seed=0) - upsampled
    grid = restorer.grid(160, 224)
    for image, starts, length in ((added, grid.columns, 224), (added.swapaxes(0, 1), grid.rows, 160)):
        found = steps_between_columns(image)
        borders = {edge for start in starts for edge in (start, start + 64) if 0 < edge < length}
        # The model's patches of 4 pixels show; tiles begin at patches, and are compared with the others.
        others = [edge for edge in range(PATCH, length, PATCH) if edge not in borders]
        at_borders, elsewhere = (found[[edge - 1 for edge in edges]] for edges in (sorted(borders), others))
        assert at_borders.mean() < elsewhere.mean() + 2 * elsewhere.std()
        assert at_borders.max() < elsewhere.max() * 1.25


@pytest.mark.parametrize(("colour_fix", "start_from_image"), [("none", False), ("wavelet", True)])
def test_memory_grows_by_a_few_images_not_by_tiles(
    colour_fix: str, start_from_image: bool, model: RestoringModel
) -> None:
    restorer = model.restorer(
        num_inference_steps=2,
        tile_batch=1,
        start_from_image=start_from_image,
        strength=0.9 if start_from_image else 1.0,
    )
    upscaler = Upscaler(restorer, 4, colour_fix)  # type: ignore[arg-type]

    def peak(side: int) -> tuple[int, int, int]:
        """Tiles, the most bytes of tensors, the bytes of an image of float32."""
        with PeakMemory() as memory:
            upscaler(draw(side // 4, side // 4, 3), seed=0)
        return len(restorer.grid(side, side)), memory.peak, side * side * 3 * 4

    (one, first, smallest), *larger = peak(64), peak(112), peak(208)
    assert [one, *(tiles for tiles, _, _ in larger)] == [1, 4, 16]
    for _, most, image in larger:
        assert most - first < 7 * (image - smallest)
    assert first > 300 * smallest  # one tile's activations, which 16 tiles at once would multiply


@dataclass
class Nothing:
    """A restorer that changes nothing, and looks at numpy's memory."""

    pixels: int
    tile: int = 64
    held: int = 0

    class latents:  # noqa: N801
        class shape:  # noqa: N801
            downscale = 1

    def __call__(self, upsampled: torch.Tensor, **settings: object) -> torch.Tensor:
        self.held = tracemalloc.get_traced_memory()[0]
        return upsampled.clone()


def test_numpys_memory_is_two_images() -> None:
    image = draw(256, 256, 3)
    upscaler = Upscaler(Nothing(4), 4)  # type: ignore[arg-type]
    tracemalloc.start()
    result = upscaler(image, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(result, np.clip(resize_bicubic(image, (1024, 1024)), 0, 1), rtol=0, atol=1e-6)
    assert peak < 2.5 * result.nbytes


@pytest.mark.parametrize("alpha", [None, draw(250, 256)])
def test_while_the_model_runs_an_image_that_was_continued_is_there_once(alpha: np.ndarray | None) -> None:
    restorer = Nothing(64)
    tracemalloc.start()
    result = Upscaler(restorer, 4).picture(Picture(draw(250, 256, 3), alpha), seed=0)  # type: ignore[arg-type]
    tracemalloc.stop()
    beside = 0 if result.alpha is None else result.alpha.nbytes
    assert restorer.held < 1.5 * result.colour.nbytes + beside


def test_a_colour_fix_brings_a_cast_back(model: RestoringModel, photograph: np.ndarray) -> None:
    upsampled = np.clip(resize_bicubic(photograph, (160, 224)), 0, 1)
    plain = Upscaler(model.restorer(), 4)(photograph, seed=0)
    adain = Upscaler(model.restorer(), 4, "adain")(photograph, seed=0)
    wavelet = Upscaler(model.restorer(), 4, "wavelet")(photograph, seed=0)
    wanted = upsampled.mean((0, 1))
    np.testing.assert_allclose(adain.mean((0, 1)), wanted, rtol=0, atol=2e-3)
    np.testing.assert_allclose(wavelet.mean((0, 1)), wanted, rtol=0, atol=2e-3)
    assert np.abs(plain.mean((0, 1)) - wanted).max() > 2 * np.abs(adain.mean((0, 1)) - wanted).max()


def test_grey_stays_grey(model: RestoringModel) -> None:
    grey = np.repeat(draw(12, 10, 1), 3, axis=2)
    result = Upscaler(model.restorer(), 4).picture(Picture(grey, grey=True, bits=16), seed=0)
    assert (result.grey, result.bits) == (True, 16)
    assert np.array_equal(result.colour[..., 0], result.colour[..., 2])


def test_what_is_below_transparent_pixels_does_not_show_at_edges(model: RestoringModel) -> None:
    colour, alpha = np.full((16, 16, 3), 0.8, np.float32), np.ones((16, 16), np.float32)
    colour[:, 8:], alpha[:, 8:] = 0.0, 0.0
    result = Upscaler(model.restorer(), 4).picture(Picture(colour, alpha), seed=0)
    assert result.alpha is not None
    expected = np.clip(resize_bicubic(alpha[..., None], (64, 64)), 0, 1)[..., 0]
    np.testing.assert_allclose(result.alpha, expected, rtol=0, atol=1e-6)
    visible = result.alpha > 0.1
    # The model changes a flat image of this grey by a few levels; black below would show as far less.
    assert result.colour[visible].min() > 0.7


def test_opaque_transparency_changes_nothing(model: RestoringModel) -> None:
    colour = draw(8, 8, 3)
    upscaler = Upscaler(model.restorer(), 4)
    opaque = upscaler.picture(Picture(colour, np.ones((8, 8), np.float32)), seed=0)
    assert np.array_equal(opaque.colour, upscaler(colour, seed=0))
    assert opaque.alpha is not None
    assert (opaque.alpha == 1).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_model_that_is_broken_is_told(value: float, model: RestoringModel) -> None:
    def broken(sample: torch.Tensor, known: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        output = torch.zeros_like(sample)
        output[..., 5, 5] = value
        return output

    restorer = model.restorer()
    object.__setattr__(restorer, "model", broken)
    with pytest.raises(UserError, match="not finite"):
        Upscaler(restorer, 4)(draw(4, 4, 3), seed=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tile": 30}, "tile of 30 pixels: expected a positive multiple of 4"),
        ({"tile": 132}, "tile of 132 pixels: the model has positions for 128 pixels a side"),
        ({"tile_overlap": 1.0}, "tile overlap 1.0"),
        ({"tile_batch": 0}, "tile batch 0"),
        ({"num_inference_steps": 0}, "num_inference_steps: expected 1 or more, got 0"),
        ({"strength": 0.5}, "strength 0.5 has no effect where sampling starts from noise alone"),
        ({"start_from_image": True}, "strength 1 has no trace of the image"),
        ({"start_from_image": True, "strength": 0.0}, "strength 0.0: expected above 0, up to 1"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], says: str, model: RestoringModel) -> None:
    with pytest.raises(UserError, match=says):
        model.restorer(**settings)  # type: ignore[arg-type]


def test_scales_and_colour_fixes_that_there_are_not(model: RestoringModel) -> None:
    with pytest.raises(UserError, match="scale 0: expected 1 or more"):
        Upscaler(model.restorer(), 0)
    with pytest.raises(UserError, match="colour fix 'adam': expected one of adain, wavelet, none"):
        Upscaler(model.restorer(), 4, "adam")  # type: ignore[arg-type]
