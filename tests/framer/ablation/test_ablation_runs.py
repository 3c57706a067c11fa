"""Runs of an ablation: trained, resumed, skipped, and tabulated."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ablation_cases import plan, write_study
from training_metrics import step_line

from framer.ablation import runs
from framer.ablation.plan import PlannedRun
from framer.ablation.results import collect
from framer.cli import main
from framer.config.loading import save_config
from framer.data.images import write_png
from framer.data.sources import with_data_settings
from framer.errors import UserError
from framer.evaluation.table import EvaluationRow, write_evaluation
from framer.training.run_folder import RunFolder

STEPS = ("training.max_steps=2", "training.batch_size=2")


def finish(run: PlannedRun, *, psnr: float, steps: int = 4, bicubic: float = 20.0) -> None:
    """Leaves on disk what a finished run leaves."""
    folder = RunFolder(Path(run.config.output_dir))
    folder.create()
    folder.config.write_text(save_config(run.config))
    (folder.root / "report.md").write_text("# report\n")
    folder.metrics.write_text("".join(json.dumps(step_line(step, align=0.5)) + "\n" for step in range(1, 21)))
    rows = [EvaluationRow(name, bicubic, psnr + add, 0.5, 0.6 + add) for name, add in (("a", -0.1), ("b", 0.1))]
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


def test_a_call_for_one_variant_or_another_seed_keeps_the_finished_rows_of_earlier_calls(
    tmp_path: Path, started: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write_study(tmp_path), tmp_path / "out"
    assert ablate(file, output) == 0
    assert ablate(file, output, "--only", "none", "--seeds", "10") == 0
    assert started == [("none", 0), ("framer", 0), ("none", 10)]
    assert "from earlier calls, in the table too: none, seed 0; framer, seed 0" in capsys.readouterr().out
    document = json.loads((output / "table.json").read_text())
    rows = {row["name"]: [run["seed"] for run in row["runs"]] for row in document["variants"]}
    assert rows == {"none": [0, 10], "framer": [0]}
    lines = (output / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")][2:] == ["no FRAMER", "FRAMER"]


def test_earlier_runs_of_other_settings_are_not_mixed_in(
    tmp_path: Path, started: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write_study(tmp_path), tmp_path / "out"
    assert ablate(file, output, "--only", "framer") == 0
    assert ablate(file, output, "--only", "none", "optimizer.lr=5e-4") == 2
    assert started == [("framer", 0)]
    assert "holds a run of other settings: optimizer.lr=0.0005" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=nowhere", "variant none, framer: image folder nowhere does not exist"),
        ("data.evaluation=empty", "variant none, framer: data.evaluation: image folder empty holds no image"),
        ("model.pretrained=nowhere", "variant none, framer: model.pretrained: nowhere/config.json not found"),
        ("data.texts=nowhere", "nowhere"),
        ("data.null_text_probability=0.2", "variant none, framer: data.null_text_probability=0.2, but neither"),
        ("evaluation.crop_size=512", "evaluation.crop_size=512, evaluation.crops_per_photo="),
        ("data.train=photographs data.evaluation=photographs", "1 of 1 photographs are trained on too"),
    ],
)
def test_what_no_run_could_start_with_is_told_before_the_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started: list[tuple[str, int]],
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_png(tmp_path / "photographs" / "a.png", np.zeros((256, 256, 3), np.uint8))
    assert ablate(write_study(tmp_path), tmp_path / "out", *override.split()) == 2
    assert not started
    errors = capsys.readouterr().err
    assert message in errors
    assert "no run was started" in errors
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_starts_nothing(
    tmp_path: Path, started: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert ablate(write_study(tmp_path), tmp_path / "file" / "out") == 2
    assert not started
    assert "cannot write" in capsys.readouterr().err


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
    alike = ("data.workers=3", "training.checkpoint_steps=1", "health.rank_timeout=9", "trackers.tensorboard=true")
    (same,) = plan(file, only=("framer",), output=tmp_path / "out", overrides=alike)
    runs.check_same_settings(same)
    with pytest.raises(UserError, match=r"other settings: optimizer\.lr=0\.0005 \(there 0\.001\); choose another"):
        runs.check_same_settings(other)


def test_runs_that_were_measured_on_other_images_are_in_no_table(
    tmp_path: Path, started: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write_study(tmp_path), tmp_path / "out"
    none, full = plan(file, output=output)
    finish(none, psnr=21.0)
    finish(full, psnr=21.0, bicubic=20.009)
    assert ablate(file, output) == 0
    table = (output / "table.md").read_text()
    finish(full, psnr=21.0, bicubic=20.02)
    assert ablate(file, output, "--seeds", "1") == 2
    assert started == []
    message = capsys.readouterr().err
    assert f"{full.config.output_dir}: measured on other images than {none.config.output_dir}" in message
    assert (output / "table.md").read_text() == table
    # As the message says.
    (Path(full.config.output_dir) / "report.md").unlink()
    assert ablate(file, output) == 0
    assert started == [("framer", 0)]


def test_variants_that_choose_their_images_have_a_row_of_bicubic_each(
    tmp_path: Path, started: list[tuple[str, int]]
) -> None:
    variants = {
        "light": {"title": "light"},
        "heavy": {"title": "heavy", "overrides": ["data.degradation=heavy"]},
    }
    file, output = write_study(tmp_path, variants=variants), tmp_path / "out"
    light, heavy = plan(file, output=output)
    finish(light, psnr=21.0)
    finish(heavy, psnr=21.0, bicubic=18.0)
    assert ablate(file, output) == 0
    lines = (output / "table.md").read_text().splitlines()
    assert "| bicubic, data.degradation=light | 20.00 | 0.5000 | | | |" in lines
    assert "| bicubic, data.degradation=heavy | 18.00 | 0.5000 | | | |" in lines
    document = json.loads((output / "table.json").read_text())
    assert [row["measured_on"] for row in document["variants"]] == ["data.degradation=light", "data.degradation=heavy"]


def test_runs_of_other_photographs_are_not_taken_for_these(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    (run,) = plan(
        write_study(tmp_path), only=("framer",), output=tmp_path / "out", overrides=(f"data.train={tmp_path}",)
    )
    finish(run, psnr=21.0)
    runs.check_same_settings(run)  # an older run, of which it is not known
    folder_config = RunFolder(Path(run.config.output_dir)).config
    folder_config.write_text(save_config(with_data_settings(run.config)))
    runs.check_same_settings(run)
    (tmp_path / "b.png").write_bytes(b"2")
    with pytest.raises(UserError, match=r"data.photographs_fingerprint=2 files, SHA-256 \w+ \(there 1 files"):
        runs.check_same_settings(run)
    for name in ("a.png", "b.png"):
        (tmp_path / name).unlink()
    runs.check_same_settings(run)  # a finished run is tabulated without its photographs
    (folder_config.parent / "report.md").unlink()
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        runs.check_same_settings(run)


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
    broken = tmp_path / "photographs" / "broken.png"
    broken.parent.mkdir()
    broken.write_text("no picture")
    assert ablate(file, output, *STEPS, f"data.train={broken.parent}", "--only", "none") == 1
    assert "broken.png" in (output / "none" / "seed-0" / "train.log").read_text()


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
