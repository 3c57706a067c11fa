"""What holds for all tests."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Shares the cores among xdist's processes, before torch is imported in them or in processes that tests start.

    By default each would start as many threads as there are cores. Those of two processes wait for each other: on two
    cores, tests of tiny models took several times as long.
    """
    processes = config.getoption("numprocesses", None) or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(processes))))
