"""Schedulers' signals: the run saves, leaves quickly with status 75, and the same command continues it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import read_steps, run_on_ranks, start_training, tiny_config

from framer.data.workers import leave_signals_to_parent
from framer.inference.restore import Restorer
from framer.training import trainer as trainers
from framer.training.checkpoint_choice import verify_checkpoint
from framer.training.checkpoint_writer import CheckpointWriter
from framer.training.command import main
from framer.training.preemption import PreemptedError, Preemption
from framer.training.ranks import start_distributed

SETTINGS = {"max_steps": 6, "checkpoint_steps": 6}


@pytest.fixture(autouse=True)
def _handlers_put_back() -> Iterator[None]:
    """A process that was pre-empted is deaf to signals until its end; this one goes on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert main(["--config", str(tiny_config(folder, training=SETTINGS))]) == 0
    return folder


def _assert_equal(folder: Path, other: Path) -> None:
    assert read_steps(folder) == read_steps(other)
    name = "run/export/diffusion_pytorch_model.safetensors"
    weights, expected = load_file(folder / name), load_file(other / name)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert (folder / "run/report.md").is_file()


def _checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run/checkpoints").iterdir())


def _send_in_step(monkeypatch: pytest.MonkeyPatch, number: int, at: int) -> None:
    """Lets the trainer be sent a signal in the middle of a step."""
    take = trainers.Trainer._micro_step

    def take_and_send(self: trainers.Trainer, batch: object) -> object:
        if self.step + 1 == at:
            os.kill(os.getpid(), number)
        return take(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(trainers.Trainer, "_micro_step", take_and_send)


@pytest.mark.parametrize(("number", "background"), [(signal.SIGTERM, False), (signal.SIGUSR1, True)])
def test_saves_leaves_and_goes_on(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals, background: bool
) -> None:
    config = str(tiny_config(tmp_path, training={**SETTINGS, "checkpoint_async": background}))
    with pytest.MonkeyPatch.context() as patched:
        _send_in_step(patched, number, 3)
        assert main(["--config", config]) == 75
    assert f"stopped by {number.name} at step 3; the same command continues" in capsys.readouterr().err
    assert _checkpoints(tmp_path) == ["step-00000003"]
    assert len(read_steps(tmp_path)) == 3
    assert main(["--config", config]) == 0
    _assert_equal(tmp_path, uninterrupted)


def test_the_same_command_goes_on_where_it_began_from_a_named_checkpoint(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny_config(tmp_path / "first", training={**SETTINGS, "max_steps": 2})
    assert main(["--config", str(first)]) == 0
    checkpoint = tmp_path / "first/run/checkpoints/step-00000002"
    config = str(tiny_config(tmp_path, training={**SETTINGS, "resume": str(checkpoint)}))
    with pytest.MonkeyPatch.context() as patched:
        _send_in_step(patched, signal.SIGTERM, 4)
        assert main(["--config", config]) == 75
    assert main(["--config", config]) == 0
    assert read_steps(tmp_path) == read_steps(uninterrupted)[2:]


def test_signals_while_saving_change_nothing(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_distributed()
    config = str(tiny_config(tmp_path, training=SETTINGS))
    add = CheckpointWriter.add

    def send_and_add(self: CheckpointWriter, name: str, state: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        add(self, name, state)
        os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.MonkeyPatch.context() as patched:
        _send_in_step(patched, signal.SIGTERM, 3)
        patched.setattr(CheckpointWriter, "add", send_and_add)
        assert main(["--config", config]) == 75
    assert _checkpoints(tmp_path) == ["step-00000003"]
    assert verify_checkpoint(tmp_path / "run/checkpoints/step-00000003") == []
    assert main(["--config", config]) == 0
    _assert_equal(tmp_path, uninterrupted)


@pytest.mark.parametrize("sample_steps", [0, 3])
def test_signal_while_evaluating(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str], sample_steps: int
) -> None:
    """At the end of the run, or half-way between two checkpoints."""
    config = str(tiny_config(tmp_path, training={**SETTINGS, "sample_steps": sample_steps}))
    restored = []
    restore = Restorer.__call__

    def send_and_restore(self: Restorer, *arguments: object, **settings: object) -> torch.Tensor:
        restored.append(os.kill(os.getpid(), signal.SIGTERM))
        return restore(self, *arguments, **settings)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Restorer, "__call__", send_and_restore)
        assert main(["--config", config]) == 75
    assert len(restored) == 1, "left after the crop in hand"
    step = sample_steps or 6
    assert f"stopped by SIGTERM at step {step}" in capsys.readouterr().err
    assert _checkpoints(tmp_path) == [f"step-{step:08d}"]
    assert main(["--config", config]) == 0
    _assert_equal(tmp_path, uninterrupted)
    sheets = sorted(path.name for path in (tmp_path / "run/samples").glob("*.png"))
    assert sheets == [f"step-{at:08d}.png" for at in sorted({step, 6})]


def test_the_evaluation_before_the_first_step_changes_nothing_and_can_be_left(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"pretrained": str(uninterrupted / "run/export")}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainers, "evaluated_before", lambda config, *, step: False)
        assert main(["--config", str(tiny_config(tmp_path / "without", training=SETTINGS, model=model))]) == 0
    config = str(tiny_config(tmp_path, training=SETTINGS, model=model))
    restore = Restorer.__call__

    def send_and_restore(self: Restorer, *arguments: object, **settings: object) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return restore(self, *arguments, **settings)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Restorer, "__call__", send_and_restore)
        assert main(["--config", config]) == 75
    assert "stopped by SIGTERM at step 0; the same command continues" in capsys.readouterr().err
    assert _checkpoints(tmp_path) == []
    assert main(["--config", config]) == 0
    _assert_equal(tmp_path, tmp_path / "without")
    assert (tmp_path / "run/samples/step-00000000.json").is_file()


_SIGNAL_ONE_RANK = """
import os, signal, sys
from framer.training.command import main
from framer.training.trainer import Trainer
take = Trainer._micro_step
def take_and_send(self, batch):
    if self.rank == 1 and self.step + 1 == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return take(self, batch)
Trainer._micro_step = take_and_send
sys.exit(main(["--config", sys.argv[1]]))
"""


def test_a_signal_to_one_rank_stops_all(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, training={**SETTINGS, "batch_size": 2})
    results = run_on_ranks(2, _SIGNAL_ONE_RANK, [config], timeout=240)
    for status, errors in results:
        assert status == 75, errors[-4000:]
    assert "stopped by SIGTERM at step 3; the same command continues" in results[0][1]
    assert _checkpoints(tmp_path) == ["step-00000003"]


def _wait_for_step(folder: Path, process: subprocess.Popen[str], step: int) -> None:
    metrics = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.is_file() and metrics.read_text().count("\n") >= step):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_to_the_whole_group_spares_the_workers(tmp_path: Path) -> None:
    settings = {"max_steps": 10_000, "checkpoint_steps": 10_000}
    config = tiny_config(tmp_path, training=settings, data={"workers": 1})
    process = start_training("--config", str(config), start_new_session=True)
    try:
        _wait_for_step(tmp_path, process, 2)
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75, errors
    assert "stopped by SIGTERM at step" in errors
    assert "Traceback" not in errors
    (name,) = _checkpoints(tmp_path)
    assert int(name.removeprefix("step-")) == len(read_steps(tmp_path))


def _work(started: Connection) -> None:
    leave_signals_to_parent(0)
    started.send(True)
    time.sleep(600)


def test_a_worker_hears_its_parent_alone() -> None:
    receiver, sender = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_work, args=(sender,), daemon=True)
    worker.start()
    assert receiver.recv()
    for name in ("TERM", "USR1", "INT"):
        subprocess.run(["/bin/sh", "-c", f"kill -{name} {worker.pid}"], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


def test_handlers_are_put_back_unless_the_process_leaves() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.pending == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(PreemptedError), Preemption():
        raise PreemptedError(signal.SIGTERM, 1)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
