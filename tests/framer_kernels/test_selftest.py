"""``python -m framer_kernels.selftest`` passes here, and does not pass a backend that is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from framer_kernels.backends import load_backend
from framer_kernels.selftest import command, parity
from framer_kernels.selftest.speed import Size

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "framer_kernels.selftest", "--quick", "--device", "cpu"]


def test_the_command_passes_and_prints_one_table() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, cwd=ROOT, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "framer_kernels self-test: cpu" in lines[0]
    header = next(line for line in lines if line.startswith("backend"))
    assert "forward error" in header
    assert "gradient error" in header
    rows = lines[lines.index(header) + 2 : lines.index("", lines.index(header))]
    assert [line.split()[:2] for line in rows] == [
        ["reference", "float32"],
        ["reference", "bfloat16"],
        ["portable", "float64"],
        ["portable", "float32"],
        ["portable", "bfloat16"],
    ]
    assert all(len(line) == len(header) for line in rows)
    assert sum(line.startswith("PASS") for line in lines) == 5
    assert not any(line.startswith("FAIL") for line in lines)


@pytest.mark.parametrize("mistake", [1.001, float("nan")])
def test_a_wrong_gradient_fails(
    mistake: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = load_backend("portable").gradients

    def wrong(*args: Any, **kwargs: Any) -> list[torch.Tensor | None]:
        return [None if x is None else x * mistake for x in right(*args, **kwargs)]

    monkeypatch.setattr(load_backend("portable"), "gradients", wrong)

    assert command.main(["--quick", "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("FAIL  portable float32: gradient error") for line in lines)
    assert not any("forward error" in line for line in lines if line.startswith("FAIL"))
    assert "PASS  reference float32" in lines


def test_a_backend_that_raises_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(load_backend("portable"), "measure", broken)

    assert command.main(["--quick", "--device", "cpu"]) == 1
    assert "FAIL  portable float64: RuntimeError: no such instruction" in capsys.readouterr().out


def test_a_subject_without_cases_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(parity, "QUICK_SHAPES", [])

    assert command.main(["--quick", "--device", "cpu"]) == 1
    assert "FAIL  portable float64: computes none of the cases" in capsys.readouterr().out


def test_floor_bytes() -> None:
    assert Size(layers=23, batch=1, channels=1, side=1).floor_bytes(torch.bfloat16) == 2 * 70
