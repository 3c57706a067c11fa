"""The order in which a pass over maps transforms them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WALKS = 1024
"""Programs that a walk over the maps is split for: several for each of 100 to 150 multiprocessors."""


@dataclass(frozen=True)
class Walk:
    """The order in which maps are transformed: of two neighbours the product is taken.

    Attributes:
        steps: At each step the map, 1 if it is measured there, and the layer whose pair ends there or -1.
        length: Steps of one program; it knows nothing of the programs before it.
    """

    steps: tuple[tuple[int, int, int], ...]
    length: int

    @classmethod
    def over(cls, negatives: Sequence[int], maps: int, segments: int) -> Walk:
        """Follows each layer to its negative: a cycle of N layers takes N + 1 steps, and one more for each cut."""
        length = max(3, -(-(len(negatives) + 1) // segments))
        steps: list[tuple[int, int]] = []
        left = set(range(len(negatives)))
        for start in range(len(negatives)):
            i = start
            while i in left:
                if not steps or steps[-1][0] != i or len(steps) % length == 0:
                    steps.append((i, -1))
                    if len(steps) % length == 0:
                        steps.append((i, -1))
                steps.append((negatives[i], i))
                left.remove(i)
                i = negatives[i]
        met = {i for i, _ in steps}
        steps += [(i, -1) for i in range(maps) if i not in met]
        measured: set[int] = set()
        out: list[tuple[int, int, int]] = []
        for i, pair in steps:
            out.append((i, int(i not in measured), pair))
            measured.add(i)
        return cls(tuple(out), length)

    @property
    def programs(self) -> int:
        """Programs that it is split over."""
        return -(-len(self.steps) // self.length)
