from __future__ import annotations

from itertools import chain, islice

import pytest

from framer.data.stream import StreamSampler


def _interleaved(world_size: int, batch_size: int, steps: int) -> list[list[int]]:
    """The batches of all ranks joined, micro-step by micro-step."""
    ranks = [StreamSampler(batch_size, rank, world_size, stop=steps) for rank in range(world_size)]
    return [list(chain(*batches)) for batches in zip(*ranks, strict=True)]


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 3), (3, 2), (6, 1)])
def test_ranks_together_equal_one_rank_with_the_joined_batch(world_size: int, batch_size: int) -> None:
    assert _interleaved(world_size, batch_size, 5) == list(StreamSampler(6, 0, 1, stop=5))


def test_ranks_together_take_the_stream_in_order() -> None:
    assert list(chain(*_interleaved(2, 3, 4))) == list(range(24))


def test_resume_from_the_middle() -> None:
    whole = list(StreamSampler(4, 1, 3, stop=9))
    assert list(StreamSampler(4, 1, 3, stop=4)) + list(StreamSampler(4, 1, 3, start=4, stop=9)) == whole


def test_iterating_again_starts_again() -> None:
    sampler = StreamSampler(2, 0, 1, start=3, stop=5)
    assert list(sampler) == list(sampler) == [[6, 7], [8, 9]]


def test_endless_without_a_stop() -> None:
    sampler = StreamSampler(2, 1, 2)
    assert list(islice(iter(sampler), 3)) == [[2, 3], [6, 7], [10, 11]]
    with pytest.raises(TypeError, match="no length"):
        len(sampler)


def test_length() -> None:
    assert len(StreamSampler(2, 0, 1, start=3, stop=10)) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 1), "batch_size must be at least 1, got 0"),
        ((1, 0, 0), "world_size must be at least 1, got 0"),
        ((1, 2, 2), r"rank must be in \[0, 2\), got 2"),
        ((1, -1, 2), r"rank must be in \[0, 2\), got -1"),
        ((1, 0, 1, -1), "start must not be negative, got -1"),
        ((1, 0, 1, 5, 4), "stop must not be before start=5, got 4"),
    ],
)
def test_impossible_arguments(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamSampler(*arguments)
