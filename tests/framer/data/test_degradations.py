from __future__ import annotations

import hashlib
import io
import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from framer.data.blur_kernels import KernelDraw
from framer.data.degradation_draws import DegradationDraw, ResizeDraw
from framer.data.degradations import (
    PRESETS,
    DegradationPreset,
    apply_degradation,
    degradation_preset,
    degrade,
    draw_degradation,
    sharpen,
)
from framer.data.images import read_image, resize_bicubic
from framer.data.photographs import bundled_photographs
from framer.data.presets import StagePreset
from framer.errors import UserError

# The published recipes: (heavy, light, stablesr) of each parameter.
TABLE: dict[str, tuple[Any, Any, Any]] = {
    "first.blur_probability": (1.0, 1.0, 1.0),
    "first.resize_probabilities": ((0.2, 0.7, 0.1),) * 3,
    "first.resize_range": ((0.15, 1.5), (0.3, 1.5), (0.3, 1.5)),
    "first.gaussian_probability": (0.5, 0.5, 0.5),
    "first.gaussian_sigma": ((1, 30), (1, 15), (1, 15)),
    "first.poisson_scale": ((0.05, 3), (0.05, 2), (0.05, 2)),
    "first.gray_probability": (0.4, 0.4, 0.4),
    "first.jpeg_quality": ((30, 95), (60, 95), (60, 95)),
    "second.blur_probability": (0.8, 0.5, 0.5),
    "second.resize_probabilities": ((0.3, 0.4, 0.3),) * 3,
    "second.resize_range": ((0.3, 1.2), (0.6, 1.2), (0.6, 1.2)),
    "second.gaussian_probability": (0.5, 0.5, 0.5),
    "second.gaussian_sigma": ((1, 25), (1, 12), (1, 12)),
    "second.poisson_scale": ((0.05, 2.5), (0.05, 1), (0.05, 1)),
    "second.gray_probability": (0.4, 0.4, 0.4),
    "second.jpeg_quality": ((30, 95), (60, 100), (60, 100)),
    "first.kernel.sigma": ((0.2, 3), (0.2, 3), (0.2, 1.5)),
    "first.kernel.beta_generalized": ((0.5, 4), (0.5, 4), (0.5, 2)),
    "first.kernel.beta_plateau": ((1, 2), (1, 2), (1, 1.5)),
    "second.kernel.sigma": ((0.2, 1.5), (0.2, 1.5), (0.2, 1.0)),
    "second.kernel.beta_generalized": ((0.5, 4), (0.5, 4), (0.5, 2)),
    "second.kernel.beta_plateau": ((1, 2), (1, 2), (1, 1.5)),
    "first.kernel.sinc_probability": (0.1, 0.1, 0.1),
    "second.kernel.sinc_probability": (0.1, 0.1, 0.1),
    "first.kernel.sinc_cutoff_small": ((1 / 3, 1),) * 3,
    "first.kernel.sinc_cutoff_large": ((1 / 5, 1),) * 3,
    "first.kernel.small_below": (13, 13, 13),
    "final_sinc_probability": (0.8, 0.8, 0.8),
    "final_sinc_cutoff": ((1 / 3, 1),) * 3,
    "sharpen_target": (True, False, True),
}


@pytest.mark.parametrize("field", sorted(TABLE))
def test_presets_hold_the_published_values(field: str) -> None:
    for name, expected in zip(("heavy", "light", "stablesr"), TABLE[field], strict=True):
        value: Any = PRESETS[name]
        for part in field.split("."):
            value = getattr(value, part)
        assert value == expected, name


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown degradation preset 'hevy'; expected one of heavy, light, stablesr"):
        degradation_preset("hevy")


def _photograph(size: int = 64) -> np.ndarray:
    image = read_image(bundled_photographs("train")[0])[100 : 100 + size, 150 : 150 + size]
    return image.astype(np.float32) / np.float32(255.0)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_shapes_types_and_eight_bit_levels(name: str, scale: int) -> None:
    hr = _photograph()[:, :48]
    result = degrade(hr, PRESETS[name], _rng(), scale=scale)
    assert result.lr.shape == (64 // scale, 48 // scale, 3)
    assert result.hr.shape == hr.shape
    assert result.lr.dtype == result.hr.dtype == np.float32
    assert 0.0 <= result.lr.min() <= result.lr.max() <= 1.0
    assert 0.0 <= result.hr.min() <= result.hr.max() <= 1.0
    levels = result.lr * 255.0
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)


def test_same_seed_same_result_other_seed_other_result() -> None:
    hr = _photograph()
    before = hr.copy()
    first = degrade(hr, PRESETS["heavy"], _rng(7))
    degrade(hr, PRESETS["light"], _rng(8))
    again = degrade(hr, PRESETS["heavy"], _rng(7))
    assert np.array_equal(first.lr, again.lr)
    assert np.array_equal(first.hr, again.hr)
    assert not np.array_equal(first.lr, degrade(hr, PRESETS["heavy"], _rng(9)).lr)
    assert np.array_equal(hr, before)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_threads_of_opencv_change_nothing(name: str) -> None:
    hr = _photograph(256)
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        alone = [degrade(hr, PRESETS[name], _rng(seed)).lr for seed in range(3)]
        cv2.setNumThreads(4)
        together = [degrade(hr, PRESETS[name], _rng(seed)).lr for seed in range(3)]
    finally:
        cv2.setNumThreads(threads)
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("size", [4, 8, 12])
def test_images_smaller_than_the_kernels(size: int) -> None:
    hr = _photograph(size)
    for seed in range(30):
        assert degrade(hr, PRESETS["heavy"], _rng(seed)).lr.shape == (size // 4, size // 4, 3)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_mean_colour_is_kept(name: str) -> None:
    # Away from black and white, where clipping noise and ringing moves the mean.
    hr = np.float32(0.3) + np.float32(0.4) * _photograph()
    means = []
    for seed in range(40):
        result = degrade(hr, PRESETS[name], _rng(seed))
        means.append(result.lr.mean(axis=(0, 1)) - result.hr.mean(axis=(0, 1)))
    assert np.abs(np.mean(means, axis=0)).max() < 0.01
    assert np.abs(means).max() < 0.08


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_lr_is_not_shifted_against_hr(name: str) -> None:
    # A wave of 64 pixels along each axis passes every blur; its phase in the enlarged LR gives the shift.
    size, wavelength = 192, 64
    x = np.arange(size) + 0.5
    wave = np.cos(2 * math.pi * x / wavelength + 0.7)
    hr = np.repeat((0.5 + 0.2 * wave[:, None] + 0.2 * wave[None, :])[..., None], 3, axis=2).astype(np.float32)
    probe = np.hanning(size) * np.exp(-2j * math.pi * x / wavelength)

    def phases(image: np.ndarray) -> np.ndarray:
        grey = image.mean(axis=2) - 0.5
        return np.angle([probe @ grey.mean(axis=1), probe @ grey.mean(axis=0)])

    quiet = _without_noise(PRESETS[name])
    shifts = []
    for seed in range(40):
        result = degrade(hr, quiet, _rng(seed))
        shifts.append(phases(resize_bicubic(result.lr, (size, size))) - phases(result.hr))
    pixels = np.array(shifts) * wavelength / (2 * math.pi)
    # Half a pixel of the LR, the usual mistake, is two pixels here.
    assert np.abs(pixels).max() < 0.15
    assert np.abs(pixels.mean(axis=0)).max() < 0.03


def _without_noise(preset: DegradationPreset) -> DegradationPreset:
    def quiet(stage: StagePreset) -> StagePreset:
        return replace(stage, gaussian_probability=1.0, gaussian_sigma=(0.0, 0.0), jpeg_quality=(95, 95))

    return replace(preset, first=quiet(preset.first), second=quiet(preset.second))


def _only_first_noise(**noise: Any) -> DegradationPreset:
    """A preset that does nothing but the first noise, as far as JPEG of quality 100 is nothing."""
    plain = replace(
        PRESETS["light"].first,
        blur_probability=0.0,
        resize_probabilities=(0.0, 0.0, 1.0),
        gaussian_probability=1.0,
        gaussian_sigma=(0.0, 0.0),
        jpeg_quality=(100, 100),
    )
    return DegradationPreset("noise", replace(plain, **noise), plain, 0.0, (1.0, 1.0), False)


def test_no_degradation_leaves_the_image() -> None:
    grey = np.repeat(_photograph()[..., :1], 3, axis=2)
    result = degrade(grey, _only_first_noise(), _rng(), scale=1)
    np.testing.assert_allclose(result.lr, grey, atol=3 / 255)


def test_gaussian_noise_has_the_drawn_deviation() -> None:
    flat = np.full((128, 128, 3), 0.5, np.float32)
    preset = _only_first_noise(gaussian_sigma=(12.0, 12.0), gray_probability=1.0)
    noise = degrade(flat, preset, _rng(), scale=1).lr - flat
    assert noise.std() * 255 == pytest.approx(12.0, rel=0.05)
    assert abs(noise.mean()) < 0.002


@pytest.mark.parametrize("level", [0.2, 0.8])
@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_poisson_noise_grows_with_the_root_of_the_signal(level: float, factor: float) -> None:
    flat = np.full((128, 128, 3), level, np.float32)
    preset = _only_first_noise(gaussian_probability=0.0, poisson_scale=(factor, factor), gray_probability=1.0)
    noise = degrade(flat, preset, _rng(), scale=1).lr - flat
    assert noise.std() == pytest.approx(factor * math.sqrt(level / 256), rel=0.06)
    assert abs(noise.mean()) < 0.003


@pytest.mark.parametrize("gaussian", [0.0, 1.0])
def test_gray_noise_is_the_same_in_all_channels_and_colour_noise_is_not(gaussian: float) -> None:
    flat = np.full((64, 64, 3), 0.5, np.float32)
    noise = {"gaussian_probability": gaussian, "gaussian_sigma": (12.0, 12.0), "poisson_scale": (2.0, 2.0)}
    gray = degrade(flat, _only_first_noise(**noise, gray_probability=1.0), _rng(), scale=1).lr
    colour = degrade(flat, _only_first_noise(**noise, gray_probability=0.0), _rng(), scale=1).lr
    assert (gray[..., 0] - gray[..., 2]).std() < 1 / 255
    # JPEG halves the resolution of colour twice, which leaves a quarter of the noise between channels.
    assert (colour[..., 0] - colour[..., 2]).std() > 3 / 255


class _Recorder:
    """Notes the calls into OpenCV that a degradation makes, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, Any]] = []
        for function in ("resize", "filter2D", "imencode", "GaussianBlur"):
            monkeypatch.setattr(cv2, function, self._wrapped(function, getattr(cv2, function)))

    def _wrapped(self, name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            detail = {
                "resize": lambda: (args[1], kwargs["interpolation"]),
                "filter2D": lambda: len(args[2]),
                "imencode": lambda: args[2][1],
                "GaussianBlur": lambda: args[1],
            }[name]()
            self.calls.append((name, detail))
            return function(*args, **kwargs)

        return call


def _close(count: int, total: int, probability: float) -> bool:
    """Whether a count lies within four standard deviations of what is expected."""
    return abs(count - total * probability) <= 4 * math.sqrt(total * probability * (1 - probability))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_draws_follow_the_preset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = PRESETS[name]
    hr = _photograph(80)
    rng = _rng(3)
    runs = 300
    blurs, sharpenings, jpeg_last = 0, 0, 0
    factors: list[list[float]] = [[], []]
    qualities: list[list[int]] = [[], []]
    modes: list[int] = []
    for _ in range(runs):
        with monkeypatch.context() as context:
            recorder = _Recorder(context)
            degrade(hr, preset, rng)
        names = [call for call, _ in recorder.calls]
        resizes = [detail for call, detail in recorder.calls if call == "resize"]
        assert len(resizes) == 3
        factors[0].append(resizes[0][0][0] / 80)
        factors[1].append(resizes[1][0][0] / 20)
        assert resizes[2][0] == (20, 20)
        modes += [mode for _, mode in resizes]
        first, second = [detail for call, detail in recorder.calls if call == "imencode"]
        qualities[0].append(first)
        qualities[1].append(second)
        blurs += names.count("filter2D")
        sharpenings += names.count("GaussianBlur")
        jpeg_last += names[-1] == "imencode"

    assert sharpenings == (2 * runs if preset.sharpen_target else 0)
    assert _close(jpeg_last, runs, 0.5)
    # The first blur always, the second and the final sinc by their probabilities.
    expected = runs * (1 + preset.second.blur_probability + preset.final_sinc_probability)
    assert abs(blurs - expected) < 4 * math.sqrt(runs * 0.5)
    for mode in (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC):
        assert _close(modes.count(mode), 3 * runs, 1 / 3)
    for stage, drawn, quality, step in (
        (preset.first, factors[0], qualities[0], 1 / 80),
        (preset.second, factors[1], qualities[1], 1 / 20),
    ):
        low, high = stage.resize_range
        assert low - step / 2 <= min(drawn) < low + 0.05
        assert high - 0.05 < max(drawn) <= high + step / 2
        # Factors that round to the base size hide in the count of those that keep it.
        hidden = step / 2 / (1 - low), step / 2 / (high - 1)
        shrink = stage.resize_probabilities[1] * (1 - hidden[0])
        enlarge = stage.resize_probabilities[0] * (1 - hidden[1])
        assert _close(sum(factor < 1 for factor in drawn), runs, shrink)
        assert _close(sum(factor > 1 for factor in drawn), runs, enlarge)
        assert stage.jpeg_quality[0] <= min(quality) <= stage.jpeg_quality[0] + 3
        assert stage.jpeg_quality[1] - 3 <= max(quality) <= stage.jpeg_quality[1]


def test_heavier_presets_lose_more() -> None:
    hr = _photograph(128)

    def error(name: str) -> float:
        total = 0.0
        for seed in range(24):
            result = degrade(hr, PRESETS[name], _rng(seed))
            total += float(np.square(resize_bicubic(result.lr, (128, 128)) - result.hr).mean())
        return total

    assert error("heavy") > error("light")


def test_sharpening_raises_contrast_at_edges_and_leaves_flat_areas() -> None:
    step = np.full((128, 128, 3), 0.3, np.float32)
    step[:, 64:] = 0.7
    sharpened = sharpen(step)
    assert sharpened.dtype == np.float32
    assert sharpened[64, 66, 0] > 0.75
    assert sharpened[64, 61, 0] < 0.25
    np.testing.assert_allclose(sharpened[:, :8], 0.3, atol=1e-3)
    rng = np.random.default_rng(0)
    noise = (0.5 + 0.01 * rng.standard_normal((64, 64, 3))).astype(np.float32)
    np.testing.assert_allclose(sharpen(noise), noise, atol=1e-3)


def test_target_is_sharpened_only_where_the_preset_says_so() -> None:
    hr = _photograph()
    assert np.array_equal(degrade(hr, PRESETS["light"], _rng()).hr, hr)
    assert np.array_equal(degrade(hr, PRESETS["heavy"], _rng()).hr, sharpen(hr))


@pytest.mark.parametrize(
    ("image", "scale", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), 4, r"expected a float32 \[H, W, 3\] image, got uint8"),
        (np.zeros((8, 8), np.float32), 4, r"got float32 \[8, 8\]"),
        (np.zeros((10, 8, 3), np.float32), 4, "multiples of scale=4, got 10x8"),
        (np.zeros((0, 8, 3), np.float32), 4, "multiples of scale=4, got 0x8"),
        (np.zeros((8, 8, 3), np.float32), 0, "multiples of scale=0"),
    ],
)
def test_impossible_images(image: np.ndarray, scale: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        degrade(image, PRESETS["heavy"], _rng(), scale=scale)


# SHA-256 of the LR bytes, and the generator's next number, from before draws were values of their own.
RESULTS = {
    ("heavy", 0): ("ef125bce043e98e0", 6668512787619035613),
    ("heavy", 1): ("acf4fa17adbcb23e", 420869042656203305),
    ("heavy", 2): ("a81d8d584f05c8c8", 1460275931102394547),
    ("light", 0): ("c60aaba9a409124f", 1344357701861574507),
    ("light", 1): ("54a8941794732a7d", 8583531059577379272),
    ("light", 2): ("91732cfd1367fd5a", 1779131164187808232),
    ("stablesr", 0): ("77f8811671391679", 5980412415750170625),
    ("stablesr", 1): ("acad35e2be448520", 8583531059577379272),
    ("stablesr", 2): ("50dc29d1a3a2666f", 1779131164187808232),
}


@pytest.mark.skipif(
    (cv2.__version__, np.__version__) != ("5.0.0", "2.4.6"), reason="other releases can differ in the last bits"
)
@pytest.mark.parametrize(("name", "seed"), RESULTS)
def test_results_are_what_they_have_always_been(name: str, seed: int) -> None:
    rng = _rng(seed)
    lr = degrade(_photograph(), PRESETS[name], rng).lr
    digest = hashlib.sha256(np.rint(lr * 255).astype(np.uint8).tobytes()).hexdigest()
    assert (digest[:16], int(rng.integers(1 << 63))) == RESULTS[name, seed]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_returned_draws_give_the_same_again(name: str) -> None:
    for size, seeds in ((12, 20), (64, 40), (160, 4)):
        hr = _photograph(size)
        for seed in range(seeds):
            result = degrade(hr, PRESETS[name], _rng(seed))
            again = apply_degradation(hr, result.draw)
            assert np.array_equal(again.lr, result.lr)
            assert np.array_equal(again.hr, result.hr)
            assert again.draw is result.draw


def test_draws_made_before_an_image_are_applied_to_any() -> None:
    draw = draw_degradation(PRESETS["heavy"], (64, 64), _rng())
    first, second = _photograph(), _photograph()[::-1].copy()
    assert np.array_equal(apply_degradation(first, draw).lr, apply_degradation(first, draw).lr)
    assert not np.array_equal(apply_degradation(first, draw).lr, apply_degradation(second, draw).lr)


def test_draws_of_another_size_are_refused() -> None:
    draw = draw_degradation(PRESETS["heavy"], (64, 64), _rng())
    with pytest.raises(ValueError, match=r"draws are for an image of \[64, 64\] pixels, got one of \[32, 32\]"):
        apply_degradation(_photograph(32), draw)


def _quiet_draw(shape: tuple[int, int], **first: Any) -> DegradationDraw:
    """A draw that does nothing but what is given for its first round, as far as JPEG of quality 100 is nothing."""
    drawn = draw_degradation(_only_first_noise(), shape, _rng(), scale=1)
    return replace(drawn, first=replace(drawn.first, **first))


def test_an_impulse_becomes_the_drawn_kernel() -> None:
    impulse = np.zeros((41, 41, 3), np.float32)
    impulse[20, 20] = 1.0
    rng = _rng(5)
    shapes = set()
    for _ in range(60):
        kernel = draw_degradation(PRESETS["heavy"], (64, 64), rng).first.blur
        assert kernel is not None
        shapes.add(kernel.shape)
        lr = apply_degradation(impulse, _quiet_draw((41, 41), blur=kernel)).lr
        radius = kernel.size // 2
        seen = lr[20 - radius : 21 + radius, 20 - radius : 21 + radius]
        np.testing.assert_allclose(seen, np.clip(kernel.weights(), 0, 1)[..., None].repeat(3, axis=2), atol=3 / 255)
        assert lr.sum() == pytest.approx(seen.sum(), abs=1.0)
    assert len(shapes) >= 6


def test_noise_has_the_drawn_strength() -> None:
    flat = np.full((128, 128, 3), 0.5, np.float32)
    rng = _rng(6)
    kinds = set()
    for _ in range(12):
        noise = replace(draw_degradation(PRESETS["light"], (128, 128), rng).first.noise, gray=True)
        kinds.add(noise.kind)
        seen = apply_degradation(flat, _quiet_draw((128, 128), noise=noise)).lr - flat
        expected = noise.strength if noise.kind == "gaussian" else noise.strength * math.sqrt(0.5 / 256) * 255
        # Rounding to 8 bits and JPEG add about half a level of their own.
        assert seen.std() * 255 == pytest.approx(math.hypot(expected, 0.4), rel=0.05, abs=0.25)
    assert kinds == {"gaussian", "poisson"}


def test_interpolation_is_the_drawn_one() -> None:
    hr = np.repeat(_photograph()[..., :1], 3, axis=2)
    drawn = draw_degradation(_only_first_noise(), (64, 64), _rng())
    blocks = hr.reshape(16, 4, 16, 4, 3)
    # Area means whole blocks; bilinear at a quarter of the size sees the four pixels in the middle of each alone.
    expected = {"area": blocks.mean(axis=(1, 3)), "linear": blocks[:, 1:3, :, 1:3].mean(axis=(1, 3))}
    seen = {}
    for mode in ("area", "linear", "cubic"):
        resize = ResizeDraw(1.0, (16, 16), mode)  # type: ignore[arg-type]
        seen[mode] = apply_degradation(hr, replace(drawn, second=replace(drawn.second, resize=resize))).lr
    for mode, image in expected.items():
        np.testing.assert_allclose(seen[mode], image, atol=4 / 255)
        assert np.abs(seen["cubic"] - image).max() > 6 / 255
    assert np.abs(expected["area"] - expected["linear"]).max() > 12 / 255


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_jpeg_files_have_the_drawn_quality(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[bytes] = []
    encode = cv2.imencode

    def imencode(*args: Any) -> Any:
        encoded, data = encode(*args)
        files.append(data.tobytes())
        return encoded, data

    monkeypatch.setattr(cv2, "imencode", imencode)
    hr = _photograph()
    for seed in range(15):
        files.clear()
        draw = degrade(hr, PRESETS[name], _rng(seed)).draw
        qualities = [draw.first.jpeg.quality, draw.second.jpeg.quality]
        assert [_tables(file) for file in files] == [_tables(_pillow_jpeg(quality)) for quality in qualities]


def _tables(jpeg: bytes) -> Any:
    return Image.open(io.BytesIO(jpeg)).quantization  # type: ignore[attr-defined]


def _pillow_jpeg(quality: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format="JPEG", quality=quality)
    return file.getvalue()


def test_final_sinc_is_applied_last_or_before_the_jpeg() -> None:
    # An ideal low-pass of a third of the band leaves nothing of a chequerboard, whatever comes after.
    board = np.indices((64, 64)).sum(axis=0) % 2
    hr = np.repeat((0.3 + 0.4 * board[..., None]).astype(np.float32), 3, axis=2)
    plain = draw_degradation(_only_first_noise(), (64, 64), _rng(), scale=1)
    for jpeg_last in (False, True):
        sinc = KernelDraw("sinc", 21, cutoff=math.pi / 3)
        filtered = apply_degradation(hr, replace(plain, jpeg_last=jpeg_last, final_sinc=sinc)).lr
        assert filtered[12:-12, 12:-12].std() < 0.01
    assert apply_degradation(hr, plain).lr.std() > 0.15
