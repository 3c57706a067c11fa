"""Which bucket a photograph is in, and how the buckets' streams become one."""

from __future__ import annotations

import pickle
from collections import Counter, defaultdict

import pytest

from framer.data.buckets import BucketOrder, CropSize, nearest_bucket

SIZES = [[5], [3, 3], [7, 0, 2, 1], [1, 1, 1, 1, 1], [1, 200, 13, 17, 3], [1000, 1]]


@pytest.mark.parametrize(
    ("height", "width", "bucket"),
    [
        (100, 100, 0),
        (4000, 4000, 0),
        (100, 149, 1),
        (100, 300, 1),
        (300, 100, 2),
        (100, 122, 0),  # the geometric middle of 1 and 3/2 is 1.2247
        (100, 123, 1),
        (122, 100, 0),
        (123, 100, 2),
    ],
)
def test_the_nearest_aspect_ratio(height: int, width: int, bucket: int) -> None:
    buckets = [CropSize(64, 64), CropSize(48, 72), CropSize(72, 48)]
    assert nearest_bucket(height, width, buckets) == bucket


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sizes", SIZES)
def test_every_bucket_is_taken_in_order_without_gap_or_repeat(sizes: list[int], seed: int, block: int) -> None:
    order = BucketOrder(sizes, block=block, seed=seed)
    taken: dict[int, int] = defaultdict(int)
    for index in range(block * 400):
        bucket, place = order.locate(index)
        assert place == taken[bucket]
        taken[bucket] += 1
    assert set(taken) <= {bucket for bucket, size in enumerate(sizes) if size}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sizes", SIZES)
def test_every_bucket_has_its_share_at_any_time(sizes: list[int], seed: int) -> None:
    order = BucketOrder(sizes, block=1, seed=seed)
    taken: Counter[int] = Counter()
    for block in range(1, 3 * sum(sizes)):
        taken[order.locate(block - 1).bucket] += 1
        for bucket, size in enumerate(sizes):
            assert abs(taken[bucket] - block * size / sum(sizes)) <= len(sizes)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_block_is_of_one_bucket(sizes: list[int]) -> None:
    order = BucketOrder(sizes, block=6, seed=3)
    for block in range(100):
        assert len({order.locate(6 * block + offset).bucket for offset in range(6)}) == 1


@pytest.mark.parametrize("sizes", SIZES)
def test_turns_and_blocks_are_inverse(sizes: list[int]) -> None:
    order = BucketOrder(sizes, block=1, seed=5)
    for block in range(200):
        bucket, turn = order.locate(block)
        assert order.block_of(bucket, turn) == block


def test_any_place_is_found_without_those_before_it() -> None:
    sizes = [70_000, 20_001, 9_999]
    order = BucketOrder(sizes, block=8, seed=1)
    far = 8 * 10**12 + 5
    bucket, place = order.locate(far)
    assert order.block_of(bucket, place // 8) == far // 8
    assert pickle.loads(pickle.dumps(order)).locate(far) == (bucket, place)
    assert BucketOrder(sizes, block=8, seed=1).locate(far) == (bucket, place)


def test_the_order_depends_on_the_seed() -> None:
    orders = [BucketOrder([5, 3, 2], block=1, seed=seed) for seed in range(5)]
    assert len({tuple(order.locate(index).bucket for index in range(30)) for order in orders}) > 1


def test_one_bucket_is_the_stream_itself() -> None:
    order = BucketOrder([7], block=3, seed=9)
    assert [order.locate(index) for index in range(50)] == [(0, index) for index in range(50)]


@pytest.mark.parametrize(
    ("sizes", "block", "message"),
    [
        ([3], 0, "block must be at least 1, got 0"),
        ([], 1, "not all 0"),
        ([0, 0], 1, "not all 0"),
        ([3, -1], 1, "must not be negative"),
    ],
)
def test_impossible_arguments(sizes: list[int], block: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BucketOrder(sizes, block=block, seed=0)


def test_negative_place() -> None:
    with pytest.raises(IndexError, match="start at 0, got -1"):
        BucketOrder([3], block=2, seed=0).locate(-1)
