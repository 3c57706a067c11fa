"""Checkpoints written in the background: the bytes that would have been written at once."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from training_runs import read_steps, tiny_config, train_on_ranks

from framer.config.loading import build_config, load_config
from framer.config.training import TrainConfig
from framer.training.checkpoint_folder import find_checkpoints
from framer.training.checkpoint_writer import CheckpointWriter
from framer.training.command import main
from framer.training.manifest import find_damage, read_manifest
from framer.training.trainer import Trainer

SETTINGS = {"max_steps": 5, "checkpoint_steps": 2, "checkpoints_kept": 9}


def _assert_same_checkpoints(folder: Path, other: Path) -> None:
    checkpoints, expected = (find_checkpoints(run / "run/checkpoints") for run in (folder, other))
    assert [path.name for path in checkpoints] == [path.name for path in expected]
    for checkpoint, reference in zip(checkpoints, expected, strict=True):
        files, others = read_manifest(checkpoint), read_manifest(reference)
        assert find_damage(checkpoint, files) == []
        assert files.keys() == others.keys()
        # The state names the run's folder and its settings, of which one differs here.
        assert [name for name in files if files[name] != others[name]] == ["trainer_state.json"]
        states = [json.loads((path / "trainer_state.json").read_text()) for path in (checkpoint, reference)]
        for state in states:
            del state["config"]["output_dir"], state["config"]["training"]["checkpoint_async"]
        assert states[0] == states[1]


@pytest.fixture(scope="module")
def synchronous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synchronous")
    assert main(["--config", str(tiny_config(folder, training=SETTINGS))]) == 0
    return folder


def test_training_may_change_weights_while_they_are_written(
    tmp_path: Path, synchronous: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, training={**SETTINGS, "checkpoint_async": True})
    trainer = Trainer(load_config(TrainConfig, config))
    taken = {step: threading.Event() for step in range(1, 6)}
    published_before_written = []
    write, take = CheckpointWriter._write_rest, Trainer._optimizer_step

    def write_late(self: CheckpointWriter) -> None:
        step = int(self._folder.name[-8:])
        if step < 5:  # after the weights have changed
            assert taken[step + 1].wait(60)
        published_before_written.append((self._folder.parent / f"step-{step:08d}").exists())
        write(self)

    def take_step(self: Trainer, batches: object) -> object:
        metrics = take(self, batches)  # type: ignore[arg-type]
        taken[self.step].set()
        return metrics

    monkeypatch.setattr(CheckpointWriter, "_write_rest", write_late)
    monkeypatch.setattr(Trainer, "_optimizer_step", take_step)
    trainer.train()
    assert published_before_written == [False] * 3
    _assert_same_checkpoints(tmp_path, synchronous)
    assert read_steps(tmp_path) == read_steps(synchronous)


def test_published_at_the_next_step_once_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {"max_steps": 3, "checkpoint_steps": 1, "checkpoint_async": True}
    trainer = Trainer(load_config(TrainConfig, tiny_config(tmp_path, training=sections)))
    save, found = trainer.checkpointer.save, []

    def save_and_wait(*arguments: object, **settings: object) -> None:
        found.append([path.name for path in find_checkpoints(tmp_path / "run/checkpoints")])
        save(*arguments, **settings)  # type: ignore[arg-type]
        assert trainer.checkpointer._writer is not None
        trainer.checkpointer._writer._thread.join()  # type: ignore[union-attr]
        assert not trainer.checkpointer.busy

    monkeypatch.setattr(trainer.checkpointer, "save", save_and_wait)
    trainer.train()
    assert found == [[], ["step-00000001"], ["step-00000001", "step-00000002"]]


@pytest.mark.parametrize("when", ["next step", "end"])
def test_an_error_of_the_writer_comes_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    settings = {"max_steps": 4, "checkpoint_steps": 2 if when == "next step" else 4, "checkpoint_async": True}
    config = tiny_config(tmp_path, training=settings)
    torch_save = torch.save

    def fail(self: CheckpointWriter) -> None:
        self._folder = Path("/proc/nowhere")
        write(self)

    write = CheckpointWriter._write_rest
    monkeypatch.setattr(CheckpointWriter, "_write_rest", fail)
    assert main(["--config", str(config)]) == 2
    assert "cannot save the checkpoint" in capsys.readouterr().err
    assert len(read_steps(tmp_path)) in ((3, 4) if when == "next step" else (4,))
    assert list((tmp_path / "run/checkpoints").iterdir()) == []
    assert torch.save is torch_save


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (2, "bf16"), (3, "bf16")]
)
def test_every_stage_on_two_ranks(tmp_path: Path, stage: int, precision: str) -> None:
    for background in (False, True):
        training = {**SETTINGS, "checkpoint_async": background, "batch_size": 2, "precision": precision}
        config = tiny_config(tmp_path / str(background), training=training, deepspeed={"zero_stage": stage})
        # In processes of their own: stage 3 numbers parameters on from the engine before, and saves the numbers.
        train_on_ranks(2, [config])
    _assert_same_checkpoints(tmp_path / "True", tmp_path / "False")


def test_the_rank_state_comes_back(tmp_path: Path) -> None:
    from framer.training import checkpoint as checkpoints

    config = load_config(TrainConfig, tiny_config(tmp_path))
    trainer = Trainer(config)
    share = torch.arange(5.0)
    trainer.checkpointer.save(trainer.engine, trainer._state(), rank_state={"ema": {"block": share}, "ema_steps": 7})
    drawn = torch.rand(3)
    again = Trainer(build_config(TrainConfig, config.model_dump(mode="json"), source="test"))
    folder = tmp_path / "run/checkpoints"
    loaded = checkpoints.load_checkpoint(
        again.engine, folder / "step-00000000", expected=again._state(), scratch=folder
    )
    assert torch.equal(torch.rand(3), drawn)
    assert loaded.rank_state.keys() == {"ema", "ema_steps"}
    assert torch.equal(loaded.rank_state["ema"]["block"], share)
