"""How much memory there is, and what it looks like when there is not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple


class _Controller(NamedTuple):
    """Where a version of Linux's control groups, which containers and batch systems set limits with, keeps them."""

    folder: str
    limit: str
    usage: str
    caches: tuple[str, ...]
    """Names in ``memory.stat``, with those of groups below, of what the usage counts and the kernel gives up freely."""


_SECOND: Final = _Controller("sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file"))
_FIRST: Final = _Controller(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that can be had without swapping, within the limits of the process's control groups.

    Where the system does not say, all that is built in.

    Args:
        root: Where the kernel's files are.
    """
    try:
        said = (root / "proc/meminfo").read_text(encoding="ascii")
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", said, re.MULTILINE)
    except OSError:
        found = None
    free = int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([free, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> Iterator[int]:
    """Of the process's own groups and those that they are in; any may have a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        controller = _FIRST if kinds else _SECOND
        # Within a container the path may be that outside of it, of which only the root is there.
        group = PurePosixPath(path.lstrip("/"))
        for one in (group, *group.parents):
            left = None if ".." in one.parts else _left_in(root / controller.folder / one, controller)
            if left is not None:
                yield left


def _left_in(group: Path, controller: _Controller) -> int | None:
    """None where the group has no limit, or is not there."""
    try:
        limit, usage = (int((group / name).read_text()) for name in (controller.limit, controller.usage))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # a limit may also be the word max
        return None
    return limit - usage + sum(int(stat.get(name, 0)) for name in controller.caches)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed on the CPU; torch's is a RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "can't allocate memory")
    )
