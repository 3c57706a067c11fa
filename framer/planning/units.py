"""Amounts of memory, read and written."""

from __future__ import annotations

import re
from typing import Final

from framer.errors import UserError

_UNITS: Final = {
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_memory(text: str) -> int:
    """Bytes of an amount such as ``80GB`` or ``79.2 GiB``.

    Raises:
        UserError: It is not a positive number with a known unit.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS or not float(match[1]):
        raise UserError(
            f"--memory {text}: expected a number above 0 and a unit, MB, GB, TB (powers of 1000) or MiB, GiB, TiB "
            "(powers of 1024), for example 80GB"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def gigabytes(amount: int) -> str:
    """Bytes in GB, powers of 1000, to three figures or two decimals."""
    value = amount / 10**9
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
