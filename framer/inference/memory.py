"""How much memory there is, and what it looks like when there is not."""

from __future__ import annotations

import os
import re
from pathlib import Path

_MEMORY_FILE = Path("/proc/meminfo")


def available_memory() -> int:
    """Bytes of memory that can be had without swapping; where the system does not say, all that is built in."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", _MEMORY_FILE.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed on the CPU; torch's is a RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "can't allocate memory")
    )
