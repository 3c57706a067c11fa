"""The order in which samples are taken from shards."""

from __future__ import annotations

import pytest

from framer.data.shards.order import ShardOrder

COUNTS = [[1], [5, 5, 5], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [7] * 20]


def _epoch(order: ShardOrder, counts: list[int], epoch: int) -> list[tuple[int, int]]:
    total = sum(counts)
    return [order.locate(place) for place in range(epoch * total, (epoch + 1) * total)]


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("counts", COUNTS)
def test_every_epoch_visits_every_sample_once(counts: list[int], window: int) -> None:
    order = ShardOrder(counts, bucket=0, seed=1, window=window)
    every = sorted((shard, row) for shard, count in enumerate(counts) for row in range(count))
    epochs = [_epoch(order, counts, epoch) for epoch in range(4)]
    assert all(sorted(epoch) == every for epoch in epochs)
    if len(every) > 1:
        assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("counts", COUNTS)
def test_any_place_is_found_without_those_before_it(counts: list[int]) -> None:
    forward = ShardOrder(counts, bucket=2, seed=5, window=3)
    backward = ShardOrder(counts, bucket=2, seed=5, window=3)
    places = range(3 * sum(counts))
    expected = [forward.locate(place) for place in places]
    assert [backward.locate(place) for place in reversed(places)] == expected[::-1]


def test_reads_stay_within_a_window_of_shards() -> None:
    counts = [10] * 12
    taken = _epoch(ShardOrder(counts, bucket=0, seed=0, window=4), counts, 0)
    windows = [taken[start : start + 40] for start in range(0, 120, 40)]
    for window in windows:
        assert len({shard for shard, _ in window}) == 4
        # Mixed, not one shard after the other.
        assert len({shard for shard, _ in window[:10]}) > 1
    assert [shard for shard, _ in taken] != sorted(shard for shard, _ in taken)


def test_the_order_depends_on_seed_and_bucket() -> None:
    counts = [4, 4, 4]
    orders = [_epoch(ShardOrder(counts, bucket=b, seed=s), counts, 0) for b, s in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
