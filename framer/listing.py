"""Lists in messages, which stay short whatever was found."""

from __future__ import annotations

from collections.abc import Iterable


def some_of(names: Iterable[object], most: int = 5, *, separator: str = ", ") -> str:
    """The first few of many names, and how many more there are.

    Args:
        names: Anything that can be printed.
        most: How many are shown.
        separator: What stands between them, and before the number of the others.

    Returns:
        For example ``a, b, and 7 more``.
    """
    listed = [str(name) for name in names]
    more = len(listed) - most
    return separator.join([*listed[:most], *([f"and {more} more"] if more > 0 else [])])
