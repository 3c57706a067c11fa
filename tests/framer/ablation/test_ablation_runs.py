"""Runs of an ablation: trained, resumed, skipped, and tabulated."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from ablation_cases import plan, write_study
from training_metrics import step_line

from framer.ablation import runs
from framer.ablation.plan import PlannedRun
from framer.ablation.results import collect
from framer.cli import main
from framer.config.loading import save_config
from framer.errors import UserError
from framer.evaluation.table import EvaluationRow, write_evaluation
from framer.training.run_folder import RunFolder

STEPS = ("training.max_steps=2", "training.batch_size=2")


def finish(run: PlannedRun, *, psnr: float, steps: int = 4) -> None:
    """Leaves on disk what a finished run leaves."""
    folder = RunFolder(Path(run.config.output_dir))
    folder.create()
    folder.config.write_text(save_config(run.config))
    (folder.root / "report.md").write_text("# report\n")
    folder.metrics.write_text("".join(json.dumps(step_line(step, align=0.5)) + "\n" for step in range(1, 21)))
    rows = [EvaluationRow(name, 20.0, psnr + add, 0.5, 0.6 + add) for name, add in (("a", -0.1), ("b", 0.1))]
    write_evaluation(folder.sample_table(steps), rows)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The runs that are trained, by a stand-in that finishes each at once but those of seed 9, which fail."""
    seen: list[tuple[str, int]] = []

    def train(run: PlannedRun, launcher: str, arguments: list[str]) -> int:
        seen.append((run.variant, run.seed))
        if run.seed == 9:
            return 1
        finish(run, psnr=21.0 + run.seed + (run.variant == "framer"))
        return 0

    monkeypatch.setattr(runs, "train", train)
    return seen


def ablate(file: Path, output: Path, *arguments: str) -> int:
    return main(["ablate", str(file), "-o", str(output), *arguments])


def test_finished_runs_are_not_trained_again_and_the_table_has_all(
    tmp_path: Path, started: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write_study(tmp_path, missing=["A row: why it is not there."]), tmp_path / "out"
    assert ablate(file, output, "--only", "framer") == 0
    assert ablate(file, output, "--seeds", "0", "1") == 0
    assert started == [("framer", 0), ("none", 0), ("none", 1), ("framer", 1)]
    assert "framer, seed 0: finished already" in capsys.readouterr().out
    lines = (output / "table.md").read_text().splitlines()
    assert "| no FRAMER | 21.50 (21.00 to 22.00) | 0.6000 | 0.500 | 100 | 0 1 |" in lines
    assert "| FRAMER | 22.50 (22.00 to 23.00) | 0.6000 | 0.500 | 100 | 0 1 |" in lines
    assert "| bicubic | 20.00 | 0.5000 | | | |" in lines
    assert "* A row: why it is not there." in lines
    document = json.loads((output / "table.json").read_text())
    assert set(document["metrics"]) == {"psnr", "ssim"}
    assert [run["psnr"] for run in document["variants"][1]["runs"]] == [22.0, 23.0]
    # The first step, of 9 seconds, is not the run's pace, and the most memory is the last step's.
    assert document["variants"][0]["runs"][0]["step_seconds"] == 0.5
    assert document["variants"][0]["runs"][0]["memory_bytes"] == 10**8 + 20
    assert (output / "table.png").stat().st_size > 1000


def test_a_failed_run_is_told_and_the_others_are_trained(
    tmp_path: Path, started: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write_study(tmp_path), tmp_path / "out"
    assert ablate(file, output, "--seeds", "9", "0") == 1
    assert started == [("none", 9), ("none", 0), ("framer", 9), ("framer", 0)]
    errors = capsys.readouterr().err
    assert "failed: none, seed 9: see " in errors
    assert "train.log" in errors
    assert "| no FRAMER | 21.00 | 0.6000 | 0.500 | 100 | 0 (not finished: 9) |" in (output / "table.md").read_text()


def test_runs_of_other_settings_are_not_taken_for_these(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    (before,) = plan(file, only=("framer",), output=tmp_path / "out")
    finish(before, psnr=21.0)
    runs.check_same_settings(before)
    (other,) = plan(file, only=("framer",), output=tmp_path / "out", overrides=("optimizer.lr=5e-4",))
    with pytest.raises(UserError, match=r"other settings: optimizer\.lr=0\.0005 \(there 0\.001\); choose another"):
        runs.check_same_settings(other)


def test_a_run_without_its_report_is_not_finished(tmp_path: Path) -> None:
    (run,) = plan(write_study(tmp_path), only=("framer",), output=tmp_path / "out")
    assert not runs.is_finished(run)
    finish(run, psnr=21.0)
    assert runs.is_finished(run)
    (Path(run.config.output_dir) / "report.md").unlink()
    assert not runs.is_finished(run)
    (row,) = collect([run])
    assert (row.runs, row.unfinished) == ([], [0])


@pytest.mark.slow
def test_two_variants_are_really_trained_and_one_is_resumed(tmp_path: Path) -> None:
    file, output = write_study(tmp_path), tmp_path / "out"
    assert ablate(file, output, *STEPS, "--only", "none") == 0
    folder = RunFolder(output / "none" / "seed-0")
    first = folder.metrics.read_text().splitlines()
    # As if the run had been killed after its checkpoint, before its report.
    (folder.root / "report.md").unlink()
    assert ablate(file, output, *STEPS) == 0
    assert folder.metrics.read_text().splitlines() == first, "it was trained again from the start"
    document = json.loads((output / "table.json").read_text())
    assert [len(row["runs"]) for row in document["variants"]] == [1, 1]
    assert document["variants"][0]["runs"][0]["psnr"] != document["variants"][1]["runs"][0]["psnr"]


@pytest.mark.slow
def test_a_run_that_cannot_start_leaves_its_words_in_the_log(tmp_path: Path) -> None:
    file, output = write_study(tmp_path), tmp_path / "out"
    missing = f"data.train={tmp_path / 'no_such_folder'}"
    assert ablate(file, output, *STEPS, missing, "--only", "none") == 1
    assert "no_such_folder does not exist" in (output / "none" / "seed-0" / "train.log").read_text()


WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def test_a_schedulers_signal_reaches_the_run_and_its_status_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = plan(write_study(tmp_path), only=("framer",), output=tmp_path / "out")
    ready = tmp_path / "ready"
    monkeypatch.setattr(runs, "_launch", lambda *_: [sys.executable, "-c", WAITS, str(ready)])

    def signal_when_ready() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    sender = threading.Thread(target=signal_when_ready)
    sender.start()
    assert runs.train(run, "python") == 75
    sender.join()
    assert signal.getsignal(signal.SIGTERM) is before
