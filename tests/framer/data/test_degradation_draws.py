"""The draws against the recipes as published; no expected value here is read from a preset."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
from scipy import stats

from framer.data.blur_kernels import KernelDraw
from framer.data.degradation_draws import DegradationDraw, ResizeDraw, StageDraw, draw_degradation
from framer.data.degradations import degrade
from framer.data.presets import PRESETS

NAMES = ("heavy", "light", "stablesr")
COUNT = 20_000
SHAPE = (512, 256)
# How improbable a deviation is taken for a mistake. The draws are seeded, so that a test that passes always does.
LEVEL = 1e-4

SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
# One kernel in ten is a sinc; of the others:
KERNELS = {
    "iso": 0.45,
    "aniso": 0.25,
    "generalized_iso": 0.12,
    "generalized_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}


@dataclass(frozen=True)
class Round:
    """One column of the published table, for one of the two rounds."""

    blur: float
    sigma: tuple[float, float]
    beta_generalized: tuple[float, float]
    beta_plateau: tuple[float, float]
    up_down_keep: tuple[float, float, float]
    factors: tuple[float, float]
    gaussian_sigma: tuple[float, float]
    poisson_scale: tuple[float, float]
    jpeg: tuple[int, int]


FIRST = (0.2, 0.7, 0.1)
SECOND = (0.3, 0.4, 0.3)
ROUNDS = {
    "heavy": (
        Round(1.0, (0.2, 3), (0.5, 4), (1, 2), FIRST, (0.15, 1.5), (1, 30), (0.05, 3), (30, 95)),
        Round(0.8, (0.2, 1.5), (0.5, 4), (1, 2), SECOND, (0.3, 1.2), (1, 25), (0.05, 2.5), (30, 95)),
    ),
    "light": (
        Round(1.0, (0.2, 3), (0.5, 4), (1, 2), FIRST, (0.3, 1.5), (1, 15), (0.05, 2), (60, 95)),
        Round(0.5, (0.2, 1.5), (0.5, 4), (1, 2), SECOND, (0.6, 1.2), (1, 12), (0.05, 1), (60, 100)),
    ),
    "stablesr": (
        Round(1.0, (0.2, 1.5), (0.5, 2), (1, 1.5), FIRST, (0.3, 1.5), (1, 15), (0.05, 2), (60, 95)),
        Round(0.5, (0.2, 1.0), (0.5, 2), (1, 1.5), SECOND, (0.6, 1.2), (1, 12), (0.05, 1), (60, 100)),
    ),
}
SHARPENED = {"heavy": True, "light": False, "stablesr": True}


@lru_cache(maxsize=3)
def _draws(name: str) -> tuple[DegradationDraw, ...]:
    rng = np.random.default_rng(NAMES.index(name))
    return tuple(draw_degradation(PRESETS[name], SHAPE, rng) for _ in range(COUNT))


def _rounds(name: str) -> list[tuple[Round, list[StageDraw]]]:
    first, second = ROUNDS[name]
    return [(first, [draw.first for draw in _draws(name)]), (second, [draw.second for draw in _draws(name)])]


def _assert_probability(events: Sequence[bool], probability: float) -> None:
    count = sum(events)
    assert stats.binomtest(count, len(events), probability).pvalue > LEVEL, f"{count} of {len(events)}: {probability}"


def _assert_probabilities(values: Iterable[object], probabilities: dict[object, float]) -> None:
    counts = Counter(values)
    assert set(counts) == set(probabilities)
    total = sum(counts.values())
    for value, probability in probabilities.items():
        assert stats.binomtest(counts[value], total, probability).pvalue > LEVEL, f"{value}: {counts[value]} of {total}"


def _assert_uniform(values: Sequence[float], low: float, high: float) -> None:
    assert len(values) > 100
    assert low <= min(values) <= max(values) <= high
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > LEVEL, (low, high)


def _assert_uniform_integers(values: Sequence[int], low: int, high: int) -> None:
    counts = Counter(values)
    assert set(counts) == set(range(low, high + 1))
    assert stats.chisquare(list(counts.values())).pvalue > LEVEL


def _assert_independent(rows: Sequence[object], columns: Sequence[object]) -> None:
    pairs = Counter(zip(rows, columns, strict=True))
    table = [[pairs[row, column] for column in set(columns)] for row in set(rows)]
    assert stats.chi2_contingency(table).pvalue > LEVEL


def _kernels(stages: list[StageDraw]) -> list[KernelDraw]:
    return [stage.blur for stage in stages if stage.blur is not None]


@pytest.mark.parametrize("name", NAMES)
def test_kinds_and_sizes_of_kernels(name: str) -> None:
    for expected, stages in _rounds(name):
        _assert_probability([stage.blur is not None for stage in stages], expected.blur)
        kernels = _kernels(stages)
        shapes: dict[object, float] = {shape: 0.9 * probability for shape, probability in KERNELS.items()}
        _assert_probabilities([kernel.shape for kernel in kernels], {"sinc": 0.1, **shapes})
        _assert_probabilities([kernel.size for kernel in kernels], dict.fromkeys(SIZES, 1 / 8))
        _assert_independent([kernel.shape for kernel in kernels], [kernel.size for kernel in kernels])


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_kernels(name: str) -> None:
    for expected, stages in _rounds(name):
        gaussian = [kernel for kernel in _kernels(stages) if kernel.shape != "sinc"]
        _assert_uniform([kernel.sigma_x for kernel in gaussian], *expected.sigma)
        slanted = [kernel for kernel in gaussian if kernel.shape.endswith("aniso")]
        _assert_uniform([kernel.sigma_y for kernel in slanted], *expected.sigma)
        _assert_uniform([kernel.rotation for kernel in slanted], -math.pi, math.pi)
        assert abs(np.corrcoef([(kernel.sigma_x, kernel.sigma_y) for kernel in slanted], rowvar=False)[0, 1]) < 0.06
        for kernel in gaussian:
            if not kernel.shape.endswith("aniso"):
                assert (kernel.sigma_y, kernel.rotation) == (kernel.sigma_x, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_exponents_of_kernels(name: str) -> None:
    for expected, stages in _rounds(name):
        for family, (low, high) in (
            ("generalized", expected.beta_generalized),
            ("plateau", expected.beta_plateau),
        ):
            betas = [kernel.beta for kernel in _kernels(stages) if kernel.shape.startswith(family)]
            _assert_probability([beta > 1 for beta in betas], 0.5)
            _assert_uniform([beta for beta in betas if beta > 1], 1, high)
            if low < 1:
                _assert_uniform([beta for beta in betas if beta <= 1], low, 1)
            else:
                assert {beta for beta in betas if beta <= 1} == {1.0}
        assert {kernel.beta for kernel in _kernels(stages) if kernel.shape in ("iso", "aniso", "sinc")} == {1.0}


@pytest.mark.parametrize("name", NAMES)
def test_cutoffs_of_sinc_kernels_depend_on_the_size(name: str) -> None:
    for _, stages in _rounds(name):
        sincs = [kernel for kernel in _kernels(stages) if kernel.shape == "sinc"]
        _assert_uniform([kernel.cutoff for kernel in sincs if kernel.size < 13], math.pi / 3, math.pi)
        _assert_uniform([kernel.cutoff for kernel in sincs if kernel.size >= 13], math.pi / 5, math.pi)


@pytest.mark.parametrize("name", NAMES)
def test_resizes(name: str) -> None:
    for (expected, stages), base in zip(_rounds(name), (SHAPE, (128, 64)), strict=True):
        resizes = [stage.resize for stage in stages]
        factors = np.array([resize.factor for resize in resizes])
        for chosen, probability in zip((factors > 1, factors < 1, factors == 1), expected.up_down_keep, strict=True):
            _assert_probability(chosen.tolist(), probability)
        low, high = expected.factors
        _assert_uniform(factors[factors > 1].tolist(), 1, high)
        _assert_uniform(factors[factors < 1].tolist(), low, 1)
        for resize in resizes:
            assert max(abs(side - resize.factor * full) for side, full in zip(resize.size, base, strict=True)) <= 0.5
        _assert_modes(resizes)
    _assert_modes([draw.final_resize for draw in _draws(name)])
    assert {draw.final_resize.size for draw in _draws(name)} == {(128, 64)}


def _assert_modes(resizes: Sequence[ResizeDraw]) -> None:
    _assert_probabilities([resize.mode for resize in resizes], dict.fromkeys(("area", "linear", "cubic"), 1 / 3))


@pytest.mark.parametrize("name", NAMES)
def test_noise(name: str) -> None:
    for expected, stages in _rounds(name):
        noises = [stage.noise for stage in stages]
        _assert_probability([noise.kind == "gaussian" for noise in noises], 0.5)
        _assert_probability([noise.gray for noise in noises], 0.4)
        _assert_independent([noise.kind for noise in noises], [noise.gray for noise in noises])
        gaussian = [noise.strength for noise in noises if noise.kind == "gaussian"]
        poisson = [noise.strength for noise in noises if noise.kind == "poisson"]
        _assert_uniform(gaussian, *expected.gaussian_sigma)
        _assert_uniform(poisson, *expected.poisson_scale)
    seeds = {
        stage.noise.source for _, stages in _rounds(name) for stage in stages if isinstance(stage.noise.source, int)
    }
    assert len(seeds) == 2 * COUNT


@pytest.mark.parametrize("name", NAMES)
def test_jpeg_qualities_and_the_end(name: str) -> None:
    draws = _draws(name)
    for expected, stages in _rounds(name):
        _assert_uniform_integers([stage.jpeg.quality for stage in stages], *expected.jpeg)
    _assert_probability([draw.jpeg_last for draw in draws], 0.5)
    _assert_probability([draw.final_sinc is not None for draw in draws], 0.8)
    _assert_independent([draw.jpeg_last for draw in draws], [draw.final_sinc is not None for draw in draws])
    sincs = [draw.final_sinc for draw in draws if draw.final_sinc is not None]
    assert {sinc.shape for sinc in sincs} == {"sinc"}
    _assert_probabilities([sinc.size for sinc in sincs], dict.fromkeys(SIZES, 1 / 8))
    for narrow in (True, False):
        _assert_uniform([sinc.cutoff for sinc in sincs if (sinc.size < 13) == narrow], math.pi / 3, math.pi)
    assert {draw.sharpen_target for draw in draws} == {SHARPENED[name]}


@pytest.mark.parametrize("name", NAMES)
def test_what_training_draws_has_the_same_law(name: str) -> None:
    # `degrade` goes through the same function with other noise sources; a coarser look at what comes out of it.
    image = np.full((16, 16, 3), 0.5, np.float32)
    rng = np.random.default_rng(7)
    draws = [degrade(image, PRESETS[name], rng).draw for _ in range(1000)]
    for expected, stages in zip(
        ROUNDS[name], ([draw.first for draw in draws], [draw.second for draw in draws]), strict=True
    ):
        _assert_probability([stage.blur is not None for stage in stages], expected.blur)
        _assert_probability([stage.resize.factor < 1 for stage in stages], expected.up_down_keep[1])
        sigmas = [stage.noise.strength for stage in stages if stage.noise.kind == "gaussian"]
        _assert_uniform(sigmas, *expected.gaussian_sigma)
        _assert_uniform_integers([stage.jpeg.quality for stage in stages], *expected.jpeg)
    _assert_probability([draw.jpeg_last for draw in draws], 0.5)


@pytest.mark.parametrize(
    "check",
    [
        lambda draws: _assert_probability([draw.jpeg_last for draw in draws], 0.48),
        lambda draws: _assert_uniform([draw.second.resize.factor for draw in draws], 0.6, 1.2),
        lambda draws: _assert_uniform_integers([draw.first.jpeg.quality for draw in draws], 60, 96),
        lambda draws: _assert_independent(
            [draw.final_sinc is None for draw in draws], [draw.final_sinc is None or draw.jpeg_last for draw in draws]
        ),
    ],
)
def test_the_checks_notice_a_wrong_law(check: Callable[[Sequence[DegradationDraw]], None]) -> None:
    with pytest.raises(AssertionError):
        check(_draws("light"))


@pytest.mark.parametrize(("shape", "scale"), [((10, 8), 4), ((0, 8), 4), ((8, 8), 0)])
def test_impossible_sizes(shape: tuple[int, int], scale: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of scale={scale}, got {shape[0]}x{shape[1]}"):
        draw_degradation(PRESETS["light"], shape, np.random.default_rng(0), scale=scale)


def test_steps_are_in_the_order_of_application() -> None:
    for draw in _draws("heavy")[:200]:
        names = [type(step).__name__.removesuffix("Draw") for step in draw.steps()]
        blurs = ["Kernel"] if draw.second.blur else []
        final = ["Resize", *(["Kernel"] if draw.final_sinc else [])]
        end = [*final, "Jpeg"] if draw.jpeg_last else ["Jpeg", *final]
        assert names == ["Kernel", "Resize", "Noise", "Jpeg", *blurs, "Resize", "Noise", *end]
        assert (draw.steps()[-1] is draw.second.jpeg) == draw.jpeg_last
