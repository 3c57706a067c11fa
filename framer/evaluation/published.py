"""Numbers that others published with their pictures, to check an evaluator against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """The last line of somebody's evaluation.

    Attributes:
        title: Whose pictures of which set.
        protocol: The protocol whose metrics they are.
        source: Where the numbers stand.
        pictures: How many pictures they are means of.
        values: By the protocol's metric, as printed.
        remark: Where its metrics differ from the protocol's here.
    """

    title: str
    protocol: str
    source: str
    pictures: int
    values: Mapping[str, float]
    remark: str


_OSEDIFF_REMARK: Final = (
    "Its SSIM rounds Y to 8 bit, which makes it 0.001 to 0.002 lower than the one here; its NIQE is fitted in single "
    "precision, here in double, which differs by less than 0.01 but for pictures with large areas of one colour."
)

PUBLISHED: Final[dict[str, PublishedResult]] = {
    "osediff-realsr": PublishedResult(
        title="OSEDiff on RealSR",
        protocol="osediff",
        source="github.com/cswry/OSEDiff, preset/datasets/benchmark_realsr/results_osediff/metrics, 2024-10-23",
        pictures=100,
        values={
            "psnr": 25.1511,
            "ssim": 0.7341,
            "lpips": 0.2921,
            "dists": 0.2128,
            "clipiqa": 0.6693,
            "niqe": 5.6476,
            "musiq": 69.0896,
            "maniqa-pipal": 0.6331,
            "fid": 123.493817,
        },
        remark=_OSEDIFF_REMARK,
    ),
    "osediff-drealsr": PublishedResult(
        title="OSEDiff on DRealSR",
        protocol="osediff",
        source="github.com/cswry/OSEDiff, preset/datasets/benchmark_drealsr/results_osediff/metrics, 2024-10-23",
        pictures=93,
        values={
            "psnr": 27.9243,
            "ssim": 0.7835,
            "lpips": 0.2968,
            "dists": 0.2165,
            "clipiqa": 0.6963,
            "niqe": 6.4902,
            "musiq": 64.6537,
            "maniqa-pipal": 0.5895,
            "fid": 135.296586,
        },
        remark=_OSEDIFF_REMARK,
    ),
}
"""Regression targets: the pictures that these were measured on lie in the same repository."""
