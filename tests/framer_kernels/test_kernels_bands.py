from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from framer_kernels import BandSplit
from framer_kernels.bands import sample_quantile


def test_radial_ring_of_a_square_map() -> None:
    low = BandSplit.radial(0.25).low_mask(torch.zeros(1, 1, 16, 16))

    assert low.shape == (16, 16)
    assert low.dtype == torch.bool
    # Distances up to two steps of 0.125 from zero frequency: 13 bins, those on the ring included.
    assert int(low.sum()) == 13
    assert low[0, 2]
    assert low[14, 0]
    assert not low[1, 2]


def test_radial_is_isotropic_on_a_rectangle() -> None:
    low = BandSplit.radial(0.5).low_mask(torch.zeros(1, 1, 8, 32))

    assert low[2, 0]
    assert not low[3, 0]
    assert low[0, 8]
    assert not low[0, 9]


@pytest.mark.parametrize("size", [(7, 9), (8, 5), (6, 6)])
def test_radial_treats_conjugate_frequencies_alike(size: tuple[int, int]) -> None:
    low = BandSplit.radial(0.6).low_mask(torch.zeros(1, 1, *size))

    assert torch.equal(low, low.flip(0, 1).roll((1, 1), (0, 1)))


def test_zero_cutoff_is_the_mean_alone() -> None:
    low = BandSplit.radial(0).low_mask(torch.zeros(1, 1, 6, 7))

    assert low.nonzero().tolist() == [[0, 0]]


def test_map_without_high_frequencies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 x 3 map has no frequency above the radial cutoff 1\.2"):
        BandSplit.radial(1.2).low_mask(torch.zeros(1, 1, 3, 3))


def test_quantile_is_taken_sample_by_sample() -> None:
    spectrum = torch.fft.fft2(torch.randn(3, 2, 6, 7, generator=torch.Generator().manual_seed(0)).double())
    spectrum[1] *= 1000

    low = BandSplit.quantile(0.2).low_mask(spectrum)

    for b in range(3):
        magnitude = spectrum[b].abs()
        assert torch.equal(low[b], magnitude < torch.quantile(magnitude, 0.2))


@pytest.mark.parametrize("fraction", [0.001, 0.2, 0.25, 0.5, 0.77, 0.999])
@pytest.mark.parametrize("count", [1, 2, 5, 101, 1024])
def test_quantile_equals_torch(fraction: float, count: int) -> None:
    values = torch.randn(3, count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)

    assert torch.equal(sample_quantile(values, fraction), torch.quantile(values, fraction, dim=1))
    torch.testing.assert_close(
        sample_quantile(values.float(), fraction), torch.quantile(values.float(), fraction, dim=1)
    )


def test_quantile_of_more_elements_than_torch_takes() -> None:
    count = 2**24 + 1
    values = torch.arange(count, dtype=torch.float32).flip(0)[None]
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values, 0.25, dim=1)

    assert sample_quantile(values, 0.25).item() == 0.25 * (count - 1)


def test_splits_are_values() -> None:
    assert BandSplit.radial(0.25) == BandSplit("radial", 0.25)
    assert len({BandSplit.radial(0.25), BandSplit.radial(0.25), BandSplit.quantile(0.25)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        BandSplit.radial(0.25).value = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("cutoff", [-0.1, math.sqrt(2), 7, math.nan, math.inf])
def test_bad_cutoffs(cutoff: float) -> None:
    with pytest.raises(ValueError, match=rf"radial cutoff .* got {cutoff!r}"):
        BandSplit.radial(cutoff)


@pytest.mark.parametrize("fraction", [-0.1, 0, 1, 20, math.nan, math.inf])
def test_bad_fractions(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"quantile fraction .* got {fraction!r}"):
        BandSplit.quantile(fraction)


@pytest.mark.parametrize("value", ["0.25", None, True])
def test_values_that_are_no_numbers(value: object) -> None:
    with pytest.raises(TypeError, match="takes a number"):
        BandSplit.radial(value)  # type: ignore[arg-type]


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"one of \['radial', 'quantile'\], got 'square'"):
        BandSplit("square", 0.25)  # type: ignore[arg-type]
