"""Keeping accounts of memory: what is held for what, and the most of every phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

Part: TypeAlias = Literal[
    "parameters", "master weights", "optimizer states", "gradients", "buckets", "gathered parameters", "activations",
    "temporaries",
]  # fmt: skip
Phase: TypeAlias = Literal["forward", "backward", "reduction", "optimizer step"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)


class Peak(NamedTuple):
    """The most memory of a phase.

    Attributes:
        bytes: In total.
        parts: What they are held for.
    """

    bytes: int
    parts: Mapping[Part, int]


class Ledger:
    """What a device holds now, and the most that it held in every phase.

    Attributes:
        phase: The phase that holds and peaks are counted for.
        peaks: The most of every phase so far.
    """

    def __init__(self) -> None:
        self.phase: Phase = "forward"
        self.peaks: dict[Phase, Peak] = {}
        self._held: Counter[Part] = Counter()

    def hold(self, part: Part, amount: int) -> None:
        """Holds more bytes."""
        self._held[part] += amount

    def release(self, part: Part, amount: int) -> None:
        """Holds fewer bytes."""
        self._held[part] -= amount

    def set(self, part: Part, amount: int) -> None:
        """Holds exactly so many bytes."""
        self._held[part] = amount

    def held(self, part: Part) -> int:
        """Bytes held for a part."""
        return self._held[part]

    def note(self, *, temporaries: int = 0) -> None:
        """A moment at which the total may be the phase's most, with bytes that are held at this moment alone."""
        total = sum(self._held.values()) + temporaries
        if self.phase not in self.peaks or total > self.peaks[self.phase].bytes:
            parts = self._held.copy()
            parts["temporaries"] += temporaries
            self.peaks[self.phase] = Peak(total, {part: parts[part] for part in PARTS})

    @property
    def peak(self) -> Peak:
        """The most of all phases."""
        return max(self.peaks.values(), key=lambda peak: peak.bytes)
