from __future__ import annotations

import pytest

from framer.errors import UserError
from framer.planning.units import gigabytes, parse_memory


@pytest.mark.parametrize(
    ("text", "amount"), [("80GB", 80 * 10**9), ("79.5 gib", int(79.5 * 2**30)), ("512MB", 512 * 10**6), ("1TiB", 2**40)]
)
def test_memory_is_read_with_its_unit(text: str, amount: int) -> None:
    assert parse_memory(text) == amount


@pytest.mark.parametrize("text", ["80", "80 G", "80 kilobytes", "GB", "-3GB", "0GB", "1,5GB"])
def test_other_amounts_are_refused_with_the_units_named(text: str) -> None:
    with pytest.raises(UserError, match=r"--memory .*GiB"):
        parse_memory(text)


def test_amounts_are_written_to_three_figures() -> None:
    assert [gigabytes(x) for x in (123_400_000_000, 12_340_000_000, 1_234_000_000)] == ["123", "12.3", "1.23"]
