from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from framer.data.noise import NoiseDraw, SeededNoise, StreamNoise, noise_field, noise_of


def _stream(seed: int) -> StreamNoise:
    return StreamNoise(np.random.default_rng(seed))


@pytest.mark.parametrize("source", [_stream, SeededNoise])
@pytest.mark.parametrize("level", [0, 1, 3, 20, 128, 254, 255])
def test_photons_have_a_poisson_law(source: type[SeededNoise], level: int) -> None:
    counts = source(1).photons(np.full((150, 150, 1), level, np.uint8)).ravel()
    law = stats.poisson(level * 256 / 255)
    if level == 0:
        assert not counts.any()
        return
    # Counts in classes of which each is expected often enough for a test of frequencies.
    edges = np.unique(law.ppf([0.02, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.98]))
    seen = np.bincount(np.searchsorted(edges, counts), minlength=len(edges) + 1)
    expected = np.diff([0.0, *law.cdf(edges), 1.0]) * counts.size
    assert stats.chisquare(seen, expected).pvalue > 1e-4
    assert counts.mean() == pytest.approx(law.mean(), abs=5 * law.std() / 150)


def test_seeded_photons_depend_on_their_own_place_alone() -> None:
    signal = np.random.default_rng(0).integers(0, 250, (40, 50, 3)).astype(np.uint8)
    other = signal.copy()
    other[5, 7, 1] += 1
    first, second = SeededNoise(3).photons(signal), SeededNoise(3).photons(other)
    assert np.count_nonzero(first != second) <= 1
    assert abs(int(first[5, 7, 1]) - int(second[5, 7, 1])) <= 2


def test_brighter_signal_never_has_fewer_seeded_photons() -> None:
    counts = [SeededNoise(4).photons(np.full((20, 20, 1), level, np.uint8)) for level in range(256)]
    assert all((low <= high).all() for low, high in pairwise(counts))


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_a_state_gives_what_the_generator_gave(kind: str) -> None:
    rng = np.random.default_rng(9)
    rng.standard_normal(3)
    draw = NoiseDraw(kind, False, 2.0, rng.bit_generator.state)  # type: ignore[arg-type]
    signal = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    expected = noise_field(draw, (16, 16), lambda: signal, StreamNoise(rng))
    for _ in range(2):
        assert np.array_equal(noise_field(draw, (16, 16), lambda: signal, noise_of(draw)), expected)


def test_states_of_other_generators_are_taken_too() -> None:
    rng = np.random.Generator(np.random.Philox(5))
    draw = NoiseDraw("gaussian", True, 4.0, rng.bit_generator.state)
    field = noise_field(draw, (8, 8), lambda: pytest.fail("Gaussian noise needs no signal"), noise_of(draw))
    assert field.shape == (8, 8, 1)
    assert np.array_equal(field, np.float32(4 / 255) * rng.standard_normal((8, 8, 1), dtype=np.float32))
