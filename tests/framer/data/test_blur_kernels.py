from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from framer.data.blur_kernels import draw_kernel, draw_shape, gaussian_kernel, plateau_kernel, sinc_kernel
from framer.data.presets import PRESETS, KernelPreset


def _axis(size: int) -> np.ndarray:
    return np.arange(size) - (size - 1) / 2


def test_gaussian_is_the_outer_product_of_two_gaussians() -> None:
    x = np.exp(-0.5 * (_axis(11) / 1.3) ** 2)
    y = np.exp(-0.5 * (_axis(11) / 2.1) ** 2)
    expected = np.outer(y, x) / (y.sum() * x.sum())
    np.testing.assert_allclose(gaussian_kernel(11, 1.3, 2.1), expected, atol=1e-7)


def test_rotation_by_a_right_angle_swaps_the_axes() -> None:
    turned = gaussian_kernel(9, 1.0, 2.0, math.pi / 2)
    np.testing.assert_allclose(turned, gaussian_kernel(9, 2.0, 1.0), atol=1e-7)


def test_rotation_tilts_the_long_axis() -> None:
    kernel = gaussian_kernel(21, 3.0, 1.0, math.pi / 4)
    axis = _axis(21)
    # Along the first principal axis at 45 degrees x and y agree in sign.
    assert float((kernel * np.outer(axis, axis)).sum()) > 1.0


def test_beta_one_is_the_plain_gaussian_and_large_beta_is_flat() -> None:
    assert np.array_equal(gaussian_kernel(9, 2.0, 2.0, beta=1.0), gaussian_kernel(9, 2.0, 2.0))
    flat = gaussian_kernel(9, 3.0, 3.0, beta=8.0)
    assert flat[4, 4] == pytest.approx(flat[4, 6], rel=0.02)
    assert flat[4, 4] > 50 * flat[0, 0]


def test_plateau_halves_at_one_sigma() -> None:
    kernel = plateau_kernel(9, 2.0, 2.0, beta=1.7)
    assert kernel[4, 6] == pytest.approx(kernel[4, 4] / 2)


@pytest.mark.parametrize("cutoff", [math.pi / 5, math.pi / 3, 2 * math.pi / 3])
def test_sinc_passes_below_and_stops_above_its_cutoff(cutoff: float) -> None:
    # 4 pi / size is the width of the transition of a truncated filter.
    spectrum = np.abs(np.fft.fft2(sinc_kernel(21, cutoff), (128, 128)))
    frequency = np.fft.fftfreq(128) * 2 * math.pi
    radius = np.hypot(frequency[:, None], frequency[None, :])
    assert spectrum[0, 0] == pytest.approx(1.0, abs=1e-5)
    assert spectrum[radius < cutoff - 2 * math.pi / 21].min() > 0.75
    assert spectrum[radius > cutoff + 2 * math.pi / 21].max() < 0.2


def test_sinc_is_isotropic_and_rings() -> None:
    kernel = sinc_kernel(15, 1.2)
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-8)
    np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-8)
    assert kernel.min() < 0


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("stage", ["first", "second"])
def test_drawn_kernels_follow_the_preset(name: str, stage: str) -> None:
    preset = getattr(PRESETS[name], stage).kernel
    rng = np.random.default_rng(0)
    kernels = [draw_kernel(preset, rng).weights() for _ in range(2000)]
    for kernel in kernels:
        assert kernel.dtype == np.float32
        assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-6)
    sizes = Counter(len(kernel) for kernel in kernels)
    assert sorted(sizes) == [7, 9, 11, 13, 15, 17, 19, 21]
    # 250 expected of each size, with a standard deviation of 15.
    assert max(abs(count - 250) for count in sizes.values()) < 60
    # Only the sinc has negative lobes; 200 expected, with a standard deviation of 13.
    assert abs(sum(kernel.min() < -1e-9 for kernel in kernels) - 200) < 54


def test_shapes_follow_their_probabilities() -> None:
    preset = PRESETS["heavy"].first.kernel
    rng = np.random.default_rng(0)
    counts = Counter(draw_shape(preset, rng) for _ in range(10000))
    for shape, probability in preset.shapes:
        deviation = math.sqrt(10000 * probability * (1 - probability))
        assert abs(counts[shape] - 10000 * probability) < 4 * deviation


@pytest.mark.parametrize(
    ("shape", "isotropic"),
    [
        ("iso", True),
        ("aniso", False),
        ("generalized_iso", True),
        ("generalized_aniso", False),
        ("plateau_iso", True),
        ("plateau_aniso", False),
    ],
)
def test_isotropic_shapes_are_isotropic(shape: str, isotropic: bool) -> None:
    preset = KernelPreset(
        sigma=(1.0, 3.0),
        beta_generalized=(0.5, 4.0),
        beta_plateau=(1.0, 2.0),
        shapes=((shape, 1.0),),  # type: ignore[arg-type]
        sinc_probability=0.0,
    )
    rng = np.random.default_rng(1)
    kernels = [draw_kernel(preset, rng).weights() for _ in range(20)]
    assert all(np.allclose(kernel, kernel.T, atol=1e-7) for kernel in kernels) == isotropic


def test_sigma_stays_in_its_range() -> None:
    preset = KernelPreset(
        sigma=(1.0, 1.5),
        beta_generalized=(1.0, 1.0),
        beta_plateau=(1.0, 1.0),
        shapes=(("iso", 1.0),),
        sizes=(21,),
        sinc_probability=0.0,
    )
    rng = np.random.default_rng(2)
    squares = _axis(21) ** 2
    sigmas = [math.sqrt((draw_kernel(preset, rng).weights().sum(axis=0) * squares).sum()) for _ in range(200)]
    assert 1.0 <= min(sigmas) < 1.03
    assert 1.47 < max(sigmas) <= 1.5


@pytest.mark.parametrize("shape", ["generalized_iso", "plateau_iso"])
def test_beta_is_drawn_below_and_above_one_alike(shape: str) -> None:
    preset = KernelPreset(
        sigma=(2.0, 2.0),
        beta_generalized=(0.5, 3.0),
        beta_plateau=(0.5, 3.0),
        shapes=((shape, 1.0),),  # type: ignore[arg-type]
        sizes=(11,),
        sinc_probability=0.0,
    )
    rng = np.random.default_rng(3)
    betas = []
    for _ in range(400):
        kernel = draw_kernel(preset, rng).weights().astype(float)
        ratio = kernel[5, 5] / kernel[5, 9]  # two sigma apart: q = 4
        betas.append(math.log(2 * math.log(ratio) if shape == "generalized_iso" else ratio - 1, 4))
    assert min(betas) == pytest.approx(0.5, abs=0.02)
    assert max(betas) == pytest.approx(3.0, abs=0.05)
    assert 160 < sum(beta < 1 for beta in betas) < 240
