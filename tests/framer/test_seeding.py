from __future__ import annotations

import itertools

import pytest
import torch

from framer.seeding import derived_seed, generator, integer_per_sample, normal_per_sample


def test_seeds_stay_the_same_from_version_to_version() -> None:
    """A resumed run must go on with the numbers it began with."""
    assert derived_seed(0) == 7896617691693857887
    assert derived_seed(3, "noise", 17) == 6725294459734851344
    torch.testing.assert_close(normal_per_sample((2,), [17], 3, "noise")[0], torch.tensor([-0.20639752, 0.19535518]))


def test_every_part_and_the_order_matter() -> None:
    parts = [(1, "noise", 2), (2, "noise", 1), (1, "timestep", 2), ("noise", 1, 2), (1, "noise", 3), (1, "noise")]
    seeds = [derived_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)


def test_neighbouring_runs_and_samples_share_no_seed() -> None:
    seeds = [derived_seed(*parts) for parts in itertools.product(range(30), ("noise", "timestep"), range(100))]
    assert len(set(seeds)) == len(seeds)


def test_seeds_fit_torch_and_use_the_whole_range() -> None:
    seeds = [derived_seed(0, "noise", i) for i in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    torch.Generator().manual_seed(max(seeds))


def test_very_large_seeds_work() -> None:
    assert derived_seed(10**25, "noise", 2**40) != derived_seed(10**25 + 1, "noise", 2**40)


def test_negative_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        derived_seed(-1, "noise")


def test_generators_repeat_their_numbers_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = torch.randn(4, generator=generator(1, "a"))
    assert torch.equal(torch.randn(4, generator=generator(1, "a")), first)
    assert not torch.equal(torch.randn(4, generator=generator(1, "b")), first)
    normal_per_sample((3,), [1, 2], 5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 6)])
def test_a_batch_split_in_any_way_gets_the_same_numbers(shape: tuple[int, ...]) -> None:
    whole = normal_per_sample(shape, [4, 5, 6, 7], 9, "noise")
    assert whole.shape == (4, *shape)
    assert whole.dtype == torch.float32
    assert torch.equal(
        torch.cat([normal_per_sample(shape, part, 9, "noise") for part in ([4], [5, 6], [7])]),
        whole,
    )
    assert torch.equal(normal_per_sample(shape, [7, 4], 9, "noise"), whole[[3, 0]])


def test_the_numbers_are_standard_normal_and_independent_across_samples() -> None:
    numbers = normal_per_sample((64,), list(range(500)), 0, "noise")
    assert abs(float(numbers.mean())) < 0.02
    assert float(numbers.std()) == pytest.approx(1.0, abs=0.02)
    correlation = torch.corrcoef(numbers.T)
    assert float((correlation - torch.eye(64)).abs().max()) < 0.25
    assert float(torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]))[0, 1].abs()) < 0.03


def test_integers_are_each_samples_own_and_within_their_bounds() -> None:
    whole = integer_per_sample(20, 25, list(range(200)), 9, "timestep")
    assert whole.shape == (200,)
    assert whole.dtype == torch.int64
    assert set(whole.tolist()) == {20, 21, 22, 23, 24}
    assert torch.equal(integer_per_sample(20, 25, [7, 3], 9, "timestep"), whole[[7, 3]])
    assert not torch.equal(integer_per_sample(20, 25, list(range(200)), 8, "timestep"), whole)
