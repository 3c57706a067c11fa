"""What holds for all tests."""

from __future__ import annotations

import os

# Each of xdist's processes would start as many threads as there are cores, which then wait for each other. Before
# torch is imported, and inherited by the processes that tests start.
_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _processes)))
