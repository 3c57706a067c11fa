from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from framer.negatives import draw_negatives


@pytest.mark.parametrize("mode", ["cycle", "independent"])
@pytest.mark.parametrize("layers", [2, 3, 8, 23])
def test_negatives_are_other_layers(mode, layers):
    for draw in range(50):
        negatives = draw_negatives(layers, mode, 3, draw)
        assert len(negatives) == layers
        assert all(type(j) is int and 0 <= j < layers and j != i for i, j in enumerate(negatives))


@pytest.mark.parametrize("layers", [2, 3, 8, 23])
def test_cycle_visits_every_layer_once(layers):
    for draw in range(50):
        negatives = draw_negatives(layers, "cycle", 0, draw)
        layer, visited = 0, []
        for _ in range(layers):
            visited.append(layer)
            layer = negatives[layer]
        assert layer == 0
        assert sorted(visited) == list(range(layers))


@pytest.mark.parametrize("mode", ["cycle", "independent"])
def test_each_negative_is_uniform_over_the_other_layers(mode):
    layers, draws = 5, 4000
    counts = np.zeros((layers, layers))
    for draw in range(draws):
        counts[range(layers), draw_negatives(layers, mode, 7, draw)] += 1
    assert (counts.diagonal() == 0).all()
    expected = draws / (layers - 1)
    statistic = (np.square(counts - expected) / expected)[~np.eye(layers, dtype=bool)].reshape(layers, -1).sum(1)
    # chi-squared with 3 degrees of freedom: above 16.3 once in 1000
    assert statistic.max() < 16.3


def test_cycles_are_equally_likely():
    counts = Counter(tuple(draw_negatives(4, "cycle", 1, draw)) for draw in range(3000))
    assert len(counts) == 6  # (4 - 1)! cyclic orders
    # chi-squared with 5 degrees of freedom: above 20.5 once in 1000
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 20.5


def test_independent_draws_are_not_cycles_alone():
    assert any(len(set(draw_negatives(5, "independent", 0, draw))) < 5 for draw in range(10))


@pytest.mark.parametrize("mode", ["cycle", "independent"])
def test_draws_depend_on_the_arguments_alone(mode):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    before = torch.get_rng_state()
    first = [draw_negatives(9, mode, 5, draw) for draw in range(20)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert [draw_negatives(9, mode, 5, draw) for draw in range(20)] == first
    assert [draw_negatives(9, mode, 6, draw) for draw in range(20)] != first
    assert len({tuple(negatives) for negatives in first}) == 20


def test_draws_stay_the_same_from_version_to_version():
    """A resumed run must go on with the draws of the version that began it."""
    assert draw_negatives(6, "cycle", 0, 0) == [3, 2, 4, 5, 0, 1]
    assert draw_negatives(6, "independent", 0, 0) == [3, 2, 4, 2, 1, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "cycle", 0, 0), "at least 2"),
        ((4, "cycle", -1, 0), "got -1 and 0"),
        ((4, "cycle", 0, -2), "got 0 and -2"),
        ((4, "ring", 0, 0), "'ring'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_negatives(*arguments)


def test_fixed_negatives_are_the_next_layers_in_every_draw():
    assert draw_negatives(4, "fixed", 7, 0) == draw_negatives(4, "fixed", 0, 9) == [1, 2, 3, 0]
