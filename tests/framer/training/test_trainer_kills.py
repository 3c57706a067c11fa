"""Twenty runs killed at random moments, half of them while saving, and continued: the same numbers, bit for bit."""

from __future__ import annotations

import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from training_runs import TRAIN_ALL, read_steps, start_on_ranks, tiny_config

STEPS = {"max_steps": 12, "checkpoint_steps": 2}
WEIGHTS = "run/export/diffusion_pytorch_model.safetensors"


class Case(NamedTuple):
    number: int
    ranks: int
    aimed: bool
    """Killed a moment after a save began, rather than at any moment."""


# Half of them aimed; every fifth on two ranks.
CASES = [Case(number, 2 if number % 5 == 4 else 1, number % 2 == 0) for number in range(20)]


def _config(folder: Path, ranks: int) -> Path:
    return tiny_config(folder, training={**STEPS, "batch_size": 4 // ranks})


def _start(folder: Path, ranks: int) -> list[subprocess.Popen[str]]:
    return start_on_ranks(ranks, TRAIN_ALL, [_config(folder, ranks)])


def _wait(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-4000:]


def _wait_for_start(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 240
    while not (folder / "run/config.yaml").is_file():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _wait_for_save(folder: Path, processes: list[subprocess.Popen[str]], nth: int) -> None:
    seen: set[str] = set()
    while len(seen) < nth:
        seen |= {path.name for path in (folder / "run/checkpoints").glob(".unfinished-step-*")}
        if any(process.poll() is not None for process in processes):
            return  # it saved faster than this looks
        time.sleep(0.0005)


def _run_whole(folder: Path, ranks: int) -> float:
    """Seconds from the first step on."""
    processes = _start(folder, ranks)
    _wait_for_start(folder, processes)
    started = time.monotonic()
    _wait(processes)
    return time.monotonic() - started


def _kill_and_continue(folder: Path, case: Case, seconds: float) -> bool:
    """Whether the kill fell into a save."""
    chance = random.Random(case.number)
    processes = _start(folder, case.ranks)
    _wait_for_start(folder, processes)
    if case.aimed:
        _wait_for_save(folder, processes, chance.randint(1, 5))
        time.sleep(chance.uniform(0, 0.02))
    else:
        time.sleep(chance.uniform(0, seconds))
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()
    saving = any((folder / "run/checkpoints").glob(".unfinished-step-*"))
    _wait(_start(folder, case.ranks))
    return saving


def _assert_equal(folder: Path, other: Path) -> None:
    assert read_steps(folder) == read_steps(other)
    weights, expected = load_file(folder / WEIGHTS), load_file(other / WEIGHTS)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    names = sorted(path.name for path in (folder / "run/checkpoints").iterdir())
    assert names == ["step-00000010", "step-00000012"]


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    seconds = {ranks: _run_whole(tmp_path / f"whole-{ranks}", ranks) for ranks in (1, 2)}

    def run(case: Case) -> bool:
        folder = tmp_path / f"killed-{case.number}"
        saving = _kill_and_continue(folder, case, seconds[case.ranks])
        _assert_equal(folder, tmp_path / f"whole-{case.ranks}")
        return saving

    with ThreadPoolExecutor(2) as pool:
        saving = list(pool.map(run, CASES))
    print("killed while saving:", [case.number for case, hit in zip(CASES, saving, strict=True) if hit])
    assert any(saving), "no kill fell into a save: aim better"
