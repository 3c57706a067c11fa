from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from framer.analysis.history import LayerMetrics, read_metrics
from framer.analysis.losses import plot_losses
from framer.analysis.weights import early_and_late_modulation
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.training.metrics import MetricsLog, StepTime, TrainingStep, last_step
from framer.training.trackers import TensorBoardTracker

CONFIG = TrainConfig(output_dir="runs/x")
LAYERS = LayerMetrics(
    names=["block.0", "block.1"],
    weight_lf=[0.9, 0.8],
    weight_hf=[0.7, 0.6],
    align_lf=[0.5, 0.4],
    align_hf=[0.3, 0.2],
    intra=[0.6, 0.5],
    inter=[2.0, 1.5],
)


def record(step: int, loss: float = 1.5, *, framer: bool = True, gradient_norm: float = 0.25) -> TrainingStep:
    return TrainingStep(
        step=step,
        loss=loss,
        noise_loss=0.5,
        framer_loss=1.0 if framer else None,
        gradient_norm=gradient_norm,
        learning_rate=1e-4,
        samples=16 * step,
        layers=LAYERS if framer else None,
        time=StepTime(seconds=2.0, images_per_second=8.0, data_wait_fraction=0.125),
    )


def write(path: Path, steps: range, *, start_step: int = 0, tensorboard: Path | None = None, loss: float = 1.5) -> None:
    trackers = [] if tensorboard is None else [TensorBoardTracker(tensorboard, CONFIG, start_step=start_step)]
    log = MetricsLog(path, trackers=trackers, start_step=start_step)
    for step in steps:
        log.write(record(step, loss))
    log.close()


def test_the_last_step_of_a_log(path: Path) -> None:
    assert last_step(path) == 0
    write(path, range(1, 4))
    path.write_bytes(path.read_bytes() + b'{"step": 4')
    assert last_step(path) == 3


def steps_and_losses(path: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in map(json.loads, path.read_text().splitlines())]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


@pytest.mark.parametrize("framer", [True, False])
def test_a_line_holds_the_step(path: Path, framer: bool) -> None:
    log = MetricsLog(path, start_step=0)
    log.write(record(1, framer=framer))
    log.close()
    (line,) = path.read_text().splitlines()
    assert TrainingStep.model_validate_json(line) == record(1, framer=framer)
    assert json.loads(line)["framer_loss"] == (1.0 if framer else None)
    (read,) = read_metrics(path)
    assert (read.step, read.loss, read.noise_loss) == (1, 1.5, 0.5)
    assert read.layers == (LAYERS if framer else None)


def test_a_step_can_be_read_while_the_run_goes_on(path: Path) -> None:
    log = MetricsLog(path, start_step=0)
    log.write(record(1))
    assert steps_and_losses(path) == [(1, 1.5)]
    log.write(record(2))
    assert len(read_metrics(path)) == 2
    log.close()


@pytest.mark.parametrize("gradient_norm", [math.inf, math.nan])
def test_a_gradient_norm_that_is_not_finite_is_still_json(path: Path, gradient_norm: float) -> None:
    log = MetricsLog(path, start_step=0)
    log.write(record(1, gradient_norm=gradient_norm))
    log.close()
    line = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["gradient_norm"] is None
    assert len(read_metrics(path)) == 1


@pytest.mark.parametrize("start_step", [0, 1, 3, 5, 9])
def test_resuming_drops_the_steps_that_will_be_taken_again(path: Path, start_step: int) -> None:
    write(path, range(1, 6), loss=1.0)
    write(path, range(start_step + 1, 11), start_step=start_step, loss=2.0)
    kept = [(step, 1.0) for step in range(1, min(start_step, 5) + 1)]
    assert steps_and_losses(path) == kept + [(step, 2.0) for step in range(start_step + 1, 11)]


@pytest.mark.parametrize(
    "rest",
    [b'{"step": 4, "loss": 1.', b'{"step": 4', b"{", b"\x00" * 100, b'{"step": 4, "loss": 1.0\xff\xfe', b"4", b"null"],
)
def test_what_a_killed_run_left_behind_goes(path: Path, rest: bytes) -> None:
    write(path, range(1, 4))
    path.write_bytes(path.read_bytes() + rest)
    write(path, range(4, 6), start_step=3)
    assert [step for step, _ in steps_and_losses(path)] == [1, 2, 3, 4, 5]
    assert len(read_metrics(path)) == 5


def test_a_crash_while_resuming_keeps_the_old_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, range(1, 6))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=f"cannot write {path}: No space left on device"):
        MetricsLog(path, start_step=3)
    assert path.read_bytes() == before


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_every_number(path: Path, tmp_path: Path) -> None:
    write(path, range(1, 3), tensorboard=tmp_path / "tb")
    found = scalars(tmp_path / "tb")
    assert found["train/loss"] == [(1, 1.5), (2, 1.5)]
    assert found["train/samples"] == [(1, 16.0), (2, 32.0)]
    assert found["time/images_per_second"] == [(1, 8.0), (2, 8.0)]
    assert found["framer_weight_hf/block.1"][0] == (1, pytest.approx(0.6))
    assert found["framer_inter/block.0"][0] == (1, pytest.approx(2.0))
    expected = {
        f"train/{key}" for key in ("loss", "noise_loss", "framer_loss", "gradient_norm", "learning_rate", "samples")
    }
    expected |= {"train/skipped_steps", "train/overflow_steps"}
    expected |= {f"time/{key}" for key in ("seconds", "images_per_second", "data_wait_fraction")}
    diagnostics = ("weight_lf", "weight_hf", "align_lf", "align_hf", "intra", "inter")
    expected |= {f"framer_{key}/{layer}" for key in diagnostics for layer in LAYERS.names}
    assert set(found) == expected


def test_a_skipped_step_has_no_losses_and_says_why(path: Path, tmp_path: Path) -> None:
    nothing = {"loss": None, "noise_loss": None, "framer_loss": None, "layers": None, "gradient_norm": math.inf}
    skipped = {"skipped": True, "skip_reason": "the loss is not finite", "skipped_steps": 1}
    log = MetricsLog(path, trackers=[TensorBoardTracker(tmp_path / "tb", CONFIG, start_step=0)], start_step=0)
    log.write(record(1))
    log.write(record(2).model_copy(update=nothing | skipped))
    log.write(record(3).model_copy(update={"skipped_steps": 1}))
    log.close()
    line = json.loads(path.read_text().splitlines()[1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["loss"] is line["gradient_norm"] is line["layers"] is None
    assert line["skipped"] is True
    assert line["skip_reason"] == "the loss is not finite"
    assert [step.skipped for step in read_metrics(path)] == [False, True, False]
    shown = scalars(tmp_path / "tb")
    assert shown["train/loss"] == [(1, 1.5), (3, 1.5)]
    assert shown["train/skipped_steps"] == [(1, 0.0), (2, 1.0), (3, 1.0)]
    caption = plot_losses(tmp_path / "losses.png", read_metrics(path))
    assert "1 skipped steps are left out" in caption
    early, late = early_and_late_modulation(read_metrics(path))
    assert (early.last_step, late.first_step) == (1, 3)


def test_tensorboard_without_framer_has_no_framer_numbers(path: Path, tmp_path: Path) -> None:
    log = MetricsLog(path, trackers=[TensorBoardTracker(tmp_path / "tb", CONFIG, start_step=0)], start_step=0)
    log.write(record(1, framer=False))
    log.close()
    assert not [tag for tag in scalars(tmp_path / "tb") if "framer" in tag]


def test_tensorboard_shows_each_step_once_after_resuming(path: Path, tmp_path: Path) -> None:
    write(path, range(1, 6), tensorboard=tmp_path / "tb", loss=1.0)
    write(path, range(3, 5), start_step=2, tensorboard=tmp_path / "tb", loss=2.0)
    assert scalars(tmp_path / "tb")["train/loss"] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_closing_ends_the_thread_that_writes_for_tensorboard(path: Path, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    log = MetricsLog(path, trackers=[TensorBoardTracker(tmp_path / "tb", CONFIG, start_step=0)], start_step=0)
    log.write(record(1))
    assert set(threading.enumerate()) - before
    log.close()
    assert not set(threading.enumerate()) - before


def test_no_tensorboard_where_none_is_asked_for(path: Path, tmp_path: Path) -> None:
    write(path, range(1, 3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "metrics.jsonl"
    with pytest.raises(UserError, match=f"cannot write {path}: No such file or directory"):
        MetricsLog(path, start_step=0)


def test_a_folder_where_the_file_should_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"cannot write {tmp_path}: Is a directory"):
        MetricsLog(tmp_path, start_step=0)


def test_a_full_disk_is_told_as_such_and_closing_tells_it_again() -> None:
    log = MetricsLog(Path("/dev/full"), start_step=0)
    with pytest.raises(UserError, match="cannot write /dev/full: No space left on device"):
        log.write(record(1))
    with pytest.raises(UserError, match="cannot write /dev/full: No space left on device"):
        log.close()
