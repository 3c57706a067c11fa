from __future__ import annotations

import io

import pytest

from framer.inference.progress import Progress, describe_seconds


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_rates_and_the_time_left_are_those_of_the_tiles() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(3, 60, stream=stream, clock=clock)
    clock.now += 10
    progress.add_tiles(20)
    progress.finish_image("a.png: 8x8", tiles=20)
    clock.now += 20
    progress.add_tiles(40)
    progress.finish_image("b.png: 8x8", tiles=40)
    assert stream.getvalue().splitlines() == [
        "[1/3] a.png: 8x8; 2 tiles/s, 0.1 images/s, 20 s left",
        "[2/3] b.png: 8x8; 2 tiles/s, 0.067 images/s",
    ]


def test_tiles_of_an_image_that_failed_are_not_waited_for() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(2, 30, stream=stream, clock=clock)
    clock.now += 1
    progress.finish_image("failed", tiles=20)
    clock.now += 1
    progress.add_tiles(5)
    assert progress.rates() == "2.5 tiles/s, 0.5 images/s, 2 s left"
    assert "unknown time left" in stream.getvalue()


def test_a_terminal_has_a_line_that_moves_and_is_wiped() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(2, 20, stream=stream, clock=clock)
    for _ in range(10):
        clock.now += 0.2
        progress.add_tiles(1)
    progress.finish_image("a.png", tiles=10)
    shown = stream.getvalue().split("\r")
    assert sum("[1/2] " in line and "left" in line for line in shown[:-1]) == 3  # at most every half second
    assert shown[-1].startswith("[1/2] a.png; ")
    assert shown[-2].strip() == ""
    assert len(shown[-2]) >= max(map(len, shown[:-2]))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99.4, "99 s"), (100, "2 min"), (3600, "60 min"), (6000, "1 h 40 min"), (11100, "3 h 5 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text
