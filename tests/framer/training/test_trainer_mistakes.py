"""What users do wrong: one clear message, no traceback, nothing lost."""

from __future__ import annotations

import fcntl
import resource
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_runs import TINY, run_on_ranks, tiny_config, train

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.data.outputs import LOCK_FILE
from framer.errors import UserError
from framer.training import export
from framer.training.command import main
from framer.training.health import NonFiniteLossError
from framer.training.trainer import Trainer


def _message(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


def test_missing_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml" in _message(capsys, "--config", str(tmp_path / "nowhere.yaml"))


def test_unknown_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = _message(capsys, "--config", str(tiny_config(tmp_path)), "training.max_step=3")
    assert "training.max_step: unknown key; did you mean 'max_steps'?" in message


def test_wrong_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = _message(capsys, "--config", str(tiny_config(tmp_path)), "training.max_steps=many")
    assert "training.max_steps" in message
    assert "'many'" in message


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = _message(capsys, "--config", str(tiny_config(tmp_path)), f"data.train={tmp_path / 'photos'}")
    assert str(tmp_path / "photos") in message


def test_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    message = _message(capsys, "--config", str(tiny_config(tmp_path)), f"data.train={tmp_path / 'photos'}")
    assert str(tmp_path / "photos") in message


def test_truncated_jpeg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    path = tmp_path / "photos" / "cut.jpg"
    Image.new("RGB", (200, 200), "red").save(path)
    path.write_bytes(path.read_bytes()[:600])
    message = _message(capsys, "--config", str(tiny_config(tmp_path)), f"data.train={path.parent}")
    assert "cut.jpg" in message


def test_image_smaller_than_the_crop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (20, 200), "red").save(tmp_path / "photos" / "narrow.png")
    message = _message(capsys, "--config", str(tiny_config(tmp_path)), f"data.train={tmp_path / 'photos'}")
    assert "narrow.png" in message
    assert "20x200" in message
    assert "32x32" in message


def test_evaluation_photographs_that_are_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (80, 80), "red").save(tmp_path / "photos" / "both.png")
    both = [f"data.train={tmp_path / 'photos'}", f"data.evaluation={tmp_path / 'photos'}"]
    for command in ([], ["--dry-run"]):
        message = _message(capsys, "--config", str(tiny_config(tmp_path)), *command, *both)
        assert f"1 of 1 photographs are trained on too, for they are in data.train={tmp_path / 'photos'}" in message
        assert "evaluation.allow_training_photographs=true" in message


def test_missing_pretrained_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = _message(capsys, "--config", str(tiny_config(tmp_path)), "model.pretrained=/no/such/model")
    assert "/no/such/model" in message


def test_unwritable_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    message = _message(capsys, "--config", str(tiny_config(tmp_path)), f"output_dir={tmp_path / 'file' / 'run'}")
    assert "output_dir" in message
    assert str(tmp_path / "file") in message


def test_a_folder_that_another_process_trains_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framer.training.trainer._PATIENCE_SECONDS", 0.0)
    config = str(tiny_config(tmp_path))
    (tmp_path / "run").mkdir()
    # The system tells descriptors apart, not processes.
    with (tmp_path / "run" / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = _message(capsys, "--config", config)
        assert f"output_dir: another process is writing into {tmp_path / 'run'}" in message
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
    # As after a kill: the file is there, and nobody holds it.
    assert main(["--config", config, "training.max_steps=1"]) == 0
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_mistakes_come_before_any_folder_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _message(capsys, "--config", str(tiny_config(tmp_path)), "data.train=/no/such/photos")
    assert not (tmp_path / "run").exists()


def test_no_traceback_from_the_command_line(tmp_path: Path) -> None:
    result = train("--config", str(tiny_config(tmp_path)), "data.train=/no/such/photos")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr + result.stdout
    assert "error: " in result.stderr


@pytest.mark.parametrize("enabled", [True, False])
def test_non_finite_loss_names_the_layer(tmp_path: Path, enabled: bool) -> None:
    sections = {**TINY, "output_dir": str(tmp_path / "run"), "framer": {"enabled": enabled}}
    trainer = Trainer(build_config(TrainConfig, sections, source="test"))
    with torch.no_grad():
        trainer.model.transformer_blocks[2].ff.net[2].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"step 1: .*transformer_blocks\.2\.ff\.net\.2") as caught:
        trainer.train()
    assert isinstance(caught.value, UserError)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


def test_bands_that_the_feature_map_cannot_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = _message(capsys, "--config", str(tiny_config(tmp_path)), "framer.cutoff=1.4142", "data.crop_size=12")
    assert "framer.cutoff" in message


def test_photograph_that_a_worker_cannot_read_any_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    path = tmp_path / "photos" / "vanishing.png"
    Image.new("RGB", (64, 64), "red").save(path)
    sections = {**TINY, "output_dir": str(tmp_path / "run")}
    sections["data"] = {"crop_size": 32, "workers": 1, "train": str(path.parent)}
    trainer = Trainer(build_config(TrainConfig, sections, source="test"))
    trainer.dataset._cache.clear()
    path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        trainer.train()
    assert "vanishing.png" in str(caught.value)
    assert "Traceback" not in str(caught.value)


_FULL_DISK_ON_RANK_ZERO = """
import errno, os, sys
from framer.training.command import main
from framer.training.manifest import HashingFile
if os.environ["RANK"] == "0":
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    start = HashingFile.__init__
    HashingFile.__init__ = lambda self, file: start(self, Full())
sys.exit(main(["--config", sys.argv[1]]))
"""


def test_a_disk_that_is_full_on_one_rank_stops_both(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, training={"batch_size": 2})
    results = run_on_ranks(2, _FULL_DISK_ON_RANK_ZERO, [config], timeout=120)
    for status, errors in results:
        assert status == 2
        assert "cannot save the checkpoint" in errors
        assert "No space left on device" in errors
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_full_disk_while_exporting(tmp_path: Path) -> None:
    """A limit on the size of files, for the export alone, stands in for the full disk."""
    sections = {**TINY, "output_dir": str(tmp_path / "run"), "training": {"max_steps": 1}}
    trainer = Trainer(build_config(TrainConfig, sections, source="test"))
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match="cannot write the export"):
            export.write_export(trainer.model, weights, trainer.config, tmp_path / "export")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert not (tmp_path / "export").exists()
