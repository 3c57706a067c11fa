from __future__ import annotations

from pathlib import Path

from framer.listing import some_of


def test_all_names_are_shown_up_to_the_most() -> None:
    assert some_of([]) == ""
    assert some_of(Path(name) for name in "abcde") == "a, b, c, d, e"


def test_of_more_the_number_is_said() -> None:
    assert some_of("abcdef") == "a, b, c, d, e, and 1 more"
    assert some_of([1, 2, 3], 1, separator="; ") == "1; and 2 more"
