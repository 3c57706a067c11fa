"""What the self-test does on a GPU passes in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton.runtime") is None, reason="needs Triton")

HERE = Path(__file__).parent


@pytest.mark.slow
def test_the_self_tests_budgets_hold() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parents[2])}
    program = [sys.executable, "-W", "ignore", str(HERE / "selftest_cases.py")]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [4 * 6 * 2]
