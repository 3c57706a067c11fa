"""What TensorBoard and Weights & Biases are told, before and after an interruption."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from framer.config.trackers import TrackersConfig, WandbConfig
from framer.config.training import TrainConfig
from framer.errors import MissingExtraError, UserError
from framer.training.run_folder import RunFolder
from framer.training.trackers import TensorBoardTracker, WandbTracker, open_trackers

CONFIG = TrainConfig(output_dir="runs/x", seed=5)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "sheet.png"
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:, :4, 0] = 255
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home"))


def test_tensorboard_shows_the_configuration_and_the_sample_sheet(tmp_path: Path, picture: Path) -> None:
    tracker = TensorBoardTracker(tmp_path / "tb", CONFIG, start_step=0)
    tracker.log_image("samples", picture, 7)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (7, 8, 6)
    (text,) = events.Tensors("config/text_summary")
    assert "seed: 5" in text.tensor_proto.string_val[0].decode()


def test_a_missing_tensorboard_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "tensorboard" or n == "torch.utils.tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"tensorboard is not installed; .*'\.\[train\]'"):
        TensorBoardTracker(tmp_path / "tb", CONFIG, start_step=0)


def test_a_file_where_the_tensorboard_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "tb").touch()
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'tb'}: "):
        TensorBoardTracker(tmp_path / "tb", CONFIG, start_step=0)


def records(folder: Path) -> Iterator[Any]:
    """The records of all offline runs in a folder, in order: logs in LevelDB's format, in blocks of 32 KiB."""
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.parent.name):
        content, position, message = path.read_bytes(), 7, b""
        while position + 7 <= len(content):
            left = 32768 - position % 32768
            if left < 7:
                position += left
                continue
            length, kind = struct.unpack_from("<HB", content, position + 4)
            message += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                record = wandb_internal_pb2.Record()
                record.ParseFromString(message)
                message = b""
                yield record


def history(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Step and values of everything logged."""
    found = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            step = record.history.step.num if record.history.HasField("step") else values["_step"]
            found.append((step, {name: value for name, value in values.items() if not name.startswith("_")}))
    return found


def log_steps(folder: Path, steps: range, *, last_logged: int, loss: float) -> None:
    tracker = WandbTracker(folder, WandbConfig(), CONFIG, last_logged=last_logged)
    for step in steps:
        tracker.log_scalars({"train/loss": loss}, step)
    tracker.close()


def test_wandb_has_the_numbers_the_configuration_and_the_sample_sheet(tmp_path: Path, picture: Path) -> None:
    folder = tmp_path / "my-run"
    folder.mkdir()
    tracker = WandbTracker(folder, WandbConfig(project="sharp", entity="us"), CONFIG, last_logged=0)
    tracker.log_scalars({"train/loss": 1.5, "framer_intra/block.0": 0.25}, 1)
    tracker.log_scalars({"train/loss": 1.25}, 2)
    tracker.log_image("samples", picture, 2)
    tracker.close()
    (first, values), (second, later) = history(folder)
    assert (first, values) == (1, {"train/loss": 1.5, "framer_intra/block.0": 0.25})
    assert (second, later["train/loss"]) == (2, 1.25)
    assert (later["samples/width"], later["samples/height"]) == (8, 6)
    run = next(record.run for record in records(folder) if record.WhichOneof("record_type") == "run")
    assert (run.project, run.entity, run.display_name) == ("sharp", "us", "my-run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["seed"] == 5
    assert config["framer"]["preset"] == "paper"


def test_a_resumed_wandb_run_is_the_same_one_and_takes_no_step_twice(tmp_path: Path) -> None:
    log_steps(tmp_path, range(1, 7), last_logged=0, loss=1.0)
    # Interrupted at step 6, gone on from a checkpoint at 3, and interrupted again before it came back to 6.
    log_steps(tmp_path, range(4, 6), last_logged=6, loss=2.0)
    log_steps(tmp_path, range(4, 9), last_logged=5, loss=3.0)
    logged = [(step, values["train/loss"]) for step, values in history(tmp_path)]
    assert logged == [(step, 1.0) for step in range(1, 7)] + [(7, 3.0), (8, 3.0)]
    ids = {record.run.run_id for record in records(tmp_path) if record.WhichOneof("record_type") == "run"}
    assert ids == {json.loads((tmp_path / "wandb" / "framer.json").read_text())["id"]}


def test_the_run_goes_on_without_a_wandb_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = WandbTracker(tmp_path, WandbConfig(), CONFIG, last_logged=0)
    calls = []

    def log(*arguments: object, **options: object) -> None:
        calls.append(options)
        raise wandb.Error("the service is gone")

    monkeypatch.setattr(tracker._run, "log", log)
    tracker.log_scalars({"train/loss": 1.0}, 1)
    tracker.log_scalars({"train/loss": 1.0}, 2)
    tracker.close()
    assert calls == [{"step": 1}]
    assert "trackers.wandb: the service is gone; the run goes on without W&B" in caplog.text


def test_wandb_sends_nothing_by_default() -> None:
    assert WandbConfig().mode == "offline"
    assert TrackersConfig().wandb is None


def test_a_missing_wandb_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = CONFIG.model_copy(update={"trackers": TrackersConfig(tensorboard=False, wandb=WandbConfig())})
    with pytest.raises(MissingExtraError, match=r"wandb is not installed; .*'\.\[wandb\]'"):
        open_trackers(config, RunFolder(tmp_path), start_step=0, last_logged=0)


def test_wandb_online_without_a_key_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"trackers\.wandb \(mode online\): .*wandb login"):
        WandbTracker(tmp_path, WandbConfig(mode="online"), CONFIG, last_logged=0)


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_damaged_wandb_state_is_named(tmp_path: Path, content: str) -> None:
    state = tmp_path / "wandb" / "framer.json"
    state.parent.mkdir()
    state.write_text(content)
    with pytest.raises(UserError, match=f"{state} is damaged"):
        WandbTracker(tmp_path, WandbConfig(), CONFIG, last_logged=0)


def test_no_trackers_where_none_are_asked_for(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"trackers": TrackersConfig(tensorboard=False)})
    assert open_trackers(config, RunFolder(tmp_path), start_step=0, last_logged=0) == []
    assert list(tmp_path.iterdir()) == []
