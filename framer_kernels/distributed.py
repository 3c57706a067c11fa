"""The in-batch negatives of a distributed run: the samples of every rank of a process group."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from framer_kernels.bands import BandSplit
from framer_kernels.types import BandAssignment, GroupMode

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def check_group(group: object) -> None:
    """A process group that this process belongs to.

    Raises:
        TypeError: It is none.
    """
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"group must be a torch.distributed.ProcessGroup that this process belongs to, or None, got {group!r}"
        )


def group_name(group: ProcessGroup | None) -> str:
    """The name by which an operator's schema can carry a group; empty for None and for a group of one."""
    if group is None:
        return ""
    check_group(group)
    return str(group.group_name) if dist.get_world_size(group) > 1 else ""


class CommonSettings(NamedTuple):
    """What every rank of a group must have alike, or one waits for another that never comes."""

    operation: str
    """The public function."""
    negatives: tuple[int, ...]
    """One for every layer."""
    bands: BandSplit
    representation: str
    temperature: float
    shared_negatives: bool
    faw: str | None
    fam: bool
    reference_backend: bool
    """Whether the backend is the reference. The others exchange the same among themselves."""
    precision: str
    group_mode: str
    assignment: BandAssignment = "intra_low"
    """The fused operator has no other."""


class RemoteSamples(NamedTuple):
    """Maps of other ranks."""

    places: slice | Tensor
    """Their indices among all ranks' samples."""
    maps: tuple[Tensor, ...]
    """Each ``[G, C, H, W]``, in the dtype they were sent in."""


@dataclass(frozen=True)
class GlobalBatch:
    """Where this rank's samples stand among those of its process group.

    Attributes:
        group: The process group, or None for this process alone.
        sizes: Number of samples on every rank of the group, in rank order.
        rank: This process's rank in the group.
    """

    group: ProcessGroup | None
    sizes: tuple[int, ...]
    rank: int

    @classmethod
    def of(
        cls, features: Tensor, group: ProcessGroup | None, settings: CommonSettings, *, differentiated: bool
    ) -> GlobalBatch:
        """Learn the batch sizes of all ranks. With a group the call is collective and waits for the device.

        Args:
            features: ``[B, C, H, W]``, this rank's teacher. B may differ from rank to rank.
            group: The process group, or None.
            settings: What this rank is about to compute.
            differentiated: Whether a student of this rank needs a gradient.

        Raises:
            TypeError: ``group`` is no process group, or not one that this process belongs to.
            ValueError: C, H, W, the dtype, the settings or ``differentiated`` differ between ranks. Raised on all of
                them, so that none is left waiting.
        """
        if group is None:
            return cls(None, (features.shape[0],), 0)
        check_group(group)
        alike = {"dtype": features.dtype, **settings._asdict()}
        numbers = [*features.shape, int(differentiated), *map(_stable_hash, alike.values())]
        sent = torch.tensor(numbers, dtype=torch.int64, device=features.device)
        gathered = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, sent, group=group)
        by_rank: list[list[int]] = torch.stack(gathered).tolist()
        _check_agreement(by_rank, alike)
        return cls(group, tuple(numbers[0] for numbers in by_rank), dist.get_rank(group))

    @classmethod
    def known(cls, features: Tensor, group: ProcessGroup | None, sizes: Tensor) -> GlobalBatch:
        """That of an earlier call of `of`, without another exchange.

        Args:
            features: As in `of`.
            group: As in `of`.
            sizes: Number of samples on every rank, on the CPU; not read without a group.
        """
        if group is None:
            return cls(None, (features.shape[0],), 0)
        return cls(group, tuple(sizes.tolist()), dist.get_rank(group))

    @property
    def first(self) -> int:
        """Index in the global batch of this rank's first sample."""
        return sum(self.sizes[: self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all ranks in rank order, detached. With a group this is a collective call.

        Args:
            rows: ``[B, D]``, one row a sample of this rank.

        Returns:
            ``[sum(sizes), D]``; this rank's rows start at `first`.
        """
        rows = rows.detach()
        if self.group is None or len(self.sizes) == 1:
            return rows
        # NCCL gathers equal shapes only.
        longest = max(self.sizes)
        padded = rows.new_zeros(longest, rows.shape[1])
        padded[: rows.shape[0]] = rows
        gathered = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(gathered, padded, group=self.group)
        return torch.cat([part[:size] for part, size in zip(gathered, self.sizes, strict=True)])

    def remote(self, maps: tuple[Tensor, ...], mode: GroupMode) -> Iterator[RemoteSamples]:
        """The other ranks' counterparts of ``maps``, all together or rank by rank. A collective call on all ranks.

        ``gather`` receives everything at once. ``ring`` passes the maps from rank to rank: what a rank holds are its
        neighbour's, which it works on, and those that arrive meanwhile, however many ranks there are.

        Args:
            maps: Maps ``[B, C, H, W]`` of this rank, alike on every rank but for B.
            mode: ``gather`` or ``ring``.

        Yields:
            Maps of one rank or of all others; the consumer must take all of them, and need not keep any.
        """
        if self.group is None or len(self.sizes) == 1:
            return
        if mode == "gather":
            rows = torch.stack(maps, dim=1).flatten(1)
            everyone = self.gather(rows).view(-1, len(maps), *maps[0].shape[1:])
            places = torch.cat(
                [
                    torch.arange(self.first, device=rows.device),
                    torch.arange(self.first + len(rows), len(everyone), device=rows.device),
                ]
            )
            others = everyone[places]
            yield RemoteSamples(places, tuple(others[:, k] for k in range(len(maps))))
            return
        yield from self._ring(maps)

    def _ring(self, maps: tuple[Tensor, ...]) -> Iterator[RemoteSamples]:
        ranks = len(self.sizes)
        following, preceding = ((self.rank + step) % ranks for step in (1, -1))
        # Equal sizes, so that one rank need not know of which rank it receives.
        held = maps[0].new_zeros(len(maps), max(self.sizes), *maps[0].shape[1:])
        for k, x in enumerate(maps):
            held[k, : len(x)] = x.detach()
        works, arriving = self._exchange(held, following, preceding)
        for step in range(1, ranks):
            for work in works:
                work.wait()
            held = arriving
            if step + 1 < ranks:
                works, arriving = self._exchange(held, following, preceding)
            owner = (self.rank - step) % ranks
            first = sum(self.sizes[:owner])
            size = self.sizes[owner]
            yield RemoteSamples(slice(first, first + size), tuple(x[:size] for x in held))

    def _exchange(self, held: Tensor, following: int, preceding: int) -> tuple[list[dist.Work], Tensor]:
        arriving = torch.empty_like(held)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, held, group=self.group, group_peer=following),
                dist.P2POp(dist.irecv, arriving, group=self.group, group_peer=preceding),
            ]
        )
        return works, arriving


def _stable_hash(value: object) -> int:
    """A number of 64 bits that is the same in every process, as `hash` of a string is not."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:8], "big", signed=True)


def _check_agreement(by_rank: list[list[int]], alike: dict[str, object]) -> None:
    """Raises on all ranks or on none, for all look at the same numbers.

    Args:
        by_rank: Of every rank B, C, H, W, whether a gradient is needed, and the hashes of ``alike``.
        alike: This rank's values, for the message.
    """
    shapes = [numbers[:4] for numbers in by_rank]
    if any(shape[1:] != shapes[0][1:] for shape in shapes):
        raise ValueError(
            f"features must have the same C, H and W on every rank of the group, got [B, C, H, W] by rank: {shapes}"
        )
    hashes = [numbers[5:] for numbers in by_rank]
    differing = []
    for k, (name, value) in enumerate(alike.items()):
        others = [rank for rank, row in enumerate(hashes) if row[k] != hashes[0][k]]
        if others:
            differing.append(f"{name} (other ranks than 0: {others}; on this rank: {value!r})")
    if differing:
        raise ValueError(f"all ranks of the group must compute the same, but they differ in {', '.join(differing)}")
    needs = [bool(numbers[4]) for numbers in by_rank]
    if any(needs) and not all(needs):
        raise ValueError(
            "students need a gradient on some ranks of the group and not on others, which would wait for the backward "
            f"pass of these for ever; a gradient is needed, by rank: {needs}"
        )
