from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from framer.data import degradations, tensor_degradations
from framer.data.blur_kernels import draw_kernel
from framer.data.degradation_draws import DegradationDraw, ResizeDraw, ResizeMode
from framer.data.degradations import PRESETS, apply_degradation, degrade, draw_degradation
from framer.data.images import read_image
from framer.data.photographs import bundled_photographs
from framer.data.tensor_degradations import degrade_batch

PHOTOGRAPH = read_image(bundled_photographs("train")[0])


def _images(count: int, height: int, width: int) -> Tensor:
    crops = [PHOTOGRAPH[3 * i : 3 * i + height, 5 * i : 5 * i + width] for i in range(count)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div(255.0)


def _draws(name: str, count: int, height: int, width: int, scale: int = 4) -> list[DegradationDraw]:
    rng = np.random.default_rng(1)
    return [draw_degradation(PRESETS[name], (height, width), rng, scale=scale) for _ in range(count)]


def _by_opencv(images: Tensor, draws: Sequence[DegradationDraw]) -> tuple[np.ndarray, np.ndarray]:
    pictures = images.permute(0, 2, 3, 1).numpy()
    results = [apply_degradation(np.ascontiguousarray(hr), draw) for hr, draw in zip(pictures, draws, strict=True)]
    return (
        np.stack([result.lr for result in results]).transpose(0, 3, 1, 2),
        np.stack([result.hr for result in results]).transpose(0, 3, 1, 2),
    )


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize(("height", "width", "scale"), [(96, 96, 4), (64, 160, 4), (60, 40, 2), (24, 24, 1)])
def test_same_draws_give_what_opencv_gives(name: str, height: int, width: int, scale: int) -> None:
    images, draws = _images(24, height, width), _draws(name, 24, height, width, scale)
    result = degrade_batch(images, draws)
    lr, hr = _by_opencv(images, draws)
    assert result.lr.shape == (24, 3, height // scale, width // scale)
    np.testing.assert_allclose(result.hr.numpy(), hr, atol=1e-5)
    difference = np.abs(result.lr.numpy() - lr) * 255
    # Where a value lies on the edge of two levels, the last digits decide, and JPEG makes a step in a block of it; few
    # images have such a value, but it can show in all of an LR image of a few blocks.
    differing = (difference > 0.5).mean(axis=(1, 2, 3))
    assert (differing > 0.01).sum() <= 4
    assert np.median(differing) < 0.002
    assert difference.mean() < 0.15


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_without_jpeg_values_are_equal_but_for_roundings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (degradations, tensor_degradations):
        monkeypatch.setattr(module, "jpeg", lambda pixels, quality: pixels)
    images, draws = _images(40, 64, 64), _draws(name, 40, 64, 64)
    difference = np.abs(degrade_batch(images, draws).lr.numpy() - _by_opencv(images, draws)[0]) * 255
    # Two roundings to 8 bits on the way to the last one, each of which can go the other way.
    assert difference.max() < 2.5
    assert (difference > 0.5).mean() < 0.002


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 4), (4, 32), (12, 12)])
def test_images_smaller_than_the_kernels(height: int, width: int) -> None:
    images, draws = _images(60, height, width), _draws("heavy", 60, height, width)
    difference = np.abs(degrade_batch(images, draws).lr.numpy() - _by_opencv(images, draws)[0]) * 255
    assert difference.mean() < 0.1


def _quiet(shape: tuple[int, int]) -> DegradationDraw:
    """Draws that change nothing, at scale 1 and with a JPEG that is made to change nothing."""
    drawn = draw_degradation(PRESETS["light"], shape, np.random.default_rng(0), scale=1)
    keep = ResizeDraw(1.0, shape, "linear")
    noise = replace(drawn.first.noise, kind="gaussian", strength=0.0)
    still = replace(drawn.first, blur=None, resize=keep, noise=noise)
    return replace(drawn, first=still, second=still, final_resize=keep, final_sinc=None)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (degradations, tensor_degradations):
        monkeypatch.setattr(module, "jpeg", lambda pixels, quality: pixels)


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("mode", ["area", "linear", "cubic"])
def test_interpolations_are_opencvs(mode: ResizeMode) -> None:
    shape = (48, 80)
    images = _images(1, *shape)
    for size in ((24, 40), (12, 20), (13, 37), (7, 9), (1, 80), (1, 1), (49, 81), (72, 120), (50, 70), (48, 100)):
        draw = _quiet(shape)
        draw = replace(draw, first=replace(draw.first, resize=ResizeDraw(1.0, size, mode)))
        difference = np.abs(degrade_batch(images, [draw]).lr.numpy() - _by_opencv(images, [draw])[0]) * 255
        assert difference.max() < 1.5, size
        # Of a single column, one pixel is two of a hundred.
        assert (difference > 0.5).mean() < 0.03, size


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("shape", [(40, 56), (9, 64), (5, 3), (1, 1)])
def test_filters_are_opencvs(shape: tuple[int, int]) -> None:
    images = _images(1, *shape)
    rng = np.random.default_rng(2)
    for _ in range(40):
        draw = _quiet(shape)
        draw = replace(draw, first=replace(draw.first, blur=draw_kernel(PRESETS["heavy"].first.kernel, rng)))
        difference = np.abs(degrade_batch(images, [draw]).lr.numpy() - _by_opencv(images, [draw])[0]) * 255
        assert difference.max() < 1.5
        assert (difference > 0.5).mean() < 0.01


def test_quiet_draws_change_nothing(steps: None) -> None:
    images = _images(1, 40, 56)
    torch.testing.assert_close(degrade_batch(images, [_quiet((40, 56))]).lr, images, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    images, draws = _images(7, 64, 96), _draws(name, 7, 64, 96)
    whole = degrade_batch(images, draws)
    alone = [degrade_batch(images[i : i + 1], draws[i : i + 1]) for i in range(7)]
    assert torch.equal(whole.lr, torch.cat([result.lr for result in alone]))
    assert torch.equal(whole.hr, torch.cat([result.hr for result in alone]))
    backwards = degrade_batch(images.flip(0), draws[::-1])
    assert torch.equal(whole.lr, backwards.lr.flip(0))
    part = degrade_batch(images[2:5], draws[2:5])
    assert torch.equal(whole.lr[2:5], part.lr)


def test_threads_change_nothing() -> None:
    images, draws = _images(6, 64, 64), _draws("heavy", 6, 64, 64)
    torch_threads = torch.get_num_threads()
    alone = degrade_batch(images, draws)
    try:
        torch.set_num_threads(2)
        together = degrade_batch(images, draws, threads=3)
    finally:
        torch.set_num_threads(torch_threads)
    assert torch.equal(alone.lr, together.lr)
    assert torch.equal(alone.hr, together.hr)


def test_images_in_another_memory_layout_give_the_same() -> None:
    images, draws = _images(2, 64, 64), _draws("heavy", 2, 64, 64)
    assert torch.equal(
        degrade_batch(images, draws).lr, degrade_batch(images.to(memory_format=torch.channels_last), draws).lr
    )


def test_draws_of_training_are_taken_too() -> None:
    images = _images(1, 64, 64)
    picture = np.ascontiguousarray(images[0].permute(1, 2, 0).numpy())
    preset = PRESETS["light"]
    preset = replace(
        preset,
        first=replace(preset.first, gaussian_probability=1.0),
        second=replace(preset.second, gaussian_probability=1.0),
    )
    for seed in range(10):
        expected = degrade(picture, preset, np.random.default_rng(seed))
        result = degrade_batch(images, [expected.draw])
        difference = np.abs(result.lr[0].permute(1, 2, 0).numpy() - expected.lr) * 255
        assert difference.mean() < 0.1


def test_levels_and_gradients() -> None:
    images, draws = _images(2, 64, 64).requires_grad_(), _draws("stablesr", 2, 64, 64)
    result = degrade_batch(images, draws)
    assert not result.lr.requires_grad
    assert not result.hr.requires_grad
    assert result.lr.dtype == result.hr.dtype == torch.float32
    levels = result.lr * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0.0)
    assert 0.0 <= result.lr.min() <= result.lr.max() <= 1.0
    assert torch.equal(degrade_batch(images, _draws("light", 2, 64, 64)).hr, images.detach())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_gpu_gives_what_the_cpu_gives(name: str) -> None:
    images, draws = _images(12, 96, 96), _draws(name, 12, 96, 96)
    result = degrade_batch(images.cuda(), draws, threads=4)
    assert result.lr.is_cuda
    difference = (result.lr.cpu() - degrade_batch(images, draws).lr).abs() * 255
    assert ((difference > 0.5).float().mean(dim=(1, 2, 3)) > 0.01).sum() <= 3
    assert difference.mean() < 0.15


@pytest.mark.parametrize(
    ("images", "shape", "count", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), (8, 8), 1, r"float32 \[B, 3, H, W\] images, got torch.float64"),
        (torch.zeros(3, 8, 8), (8, 8), 1, r"got torch.float32 \[3, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), (8, 8), 0, r"got torch.float32 \[0, 3, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8), (8, 8), 1, "draws for each of 2 images, got 1"),
        (torch.zeros(1, 3, 8, 12), (12, 8), 1, r"draws are for images of \[12, 8\] pixels, got \[8, 12\]"),
    ],
)
def test_impossible_batches(images: Tensor, shape: tuple[int, int], count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        degrade_batch(images, _draws("light", count, *shape))


def test_draws_of_two_scales_and_no_threads_are_refused() -> None:
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"draws of one scale, got \[2, 4\]"):
        degrade_batch(images, [*_draws("light", 1, 8, 8), *_draws("light", 1, 8, 8, scale=2)])
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        degrade_batch(images, _draws("light", 2, 8, 8), threads=0)
