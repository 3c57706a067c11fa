"""The whole trainer on shards and buckets: killed, resumed, and what it says of mistakes."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from training_runs import read_steps, run_on_ranks, tiny_config

from framer.data.dataset import RealISRDataset
from framer.data.images import write_png
from framer.data.shards.manifest import read_manifest
from framer.data.shards.stream_pairs import StreamPairs
from framer.data.shards.writer import write_shards
from framer.training.command import main

SQUARES, WIDES = 6, 4
BUCKETS = [[32, 32], [24, 48]]

# Trains, writing down what each rank's micro-steps consume; dies before the micro-step of the second argument.
_TRAIN_AND_TELL = """
import json, os, signal, sys
from framer.training import trainer
from framer.training.command import main

stream = trainer.stream_batches
config, dies_before = sys.argv[1], int(os.environ["DIES_BEFORE"])

def told(*args, start, **kwargs):
    for micro_step, batch in enumerate(stream(*args, start=start, **kwargs), start=start):
        if micro_step == dies_before:
            os.kill(os.getpid(), signal.SIGKILL)
        line = {"micro_step": micro_step, "name": batch["name"], "index": batch["index"].tolist()}
        line["shape"] = list(batch["hr"].shape)
        with open(f"{config}.rank{os.environ['RANK']}", "a") as file:
            file.write(json.dumps(line) + "\\n")
        yield batch

trainer.stream_batches = told
sys.exit(main(["--config", config]))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(SQUARES + WIDES):
        shape = (40, 40) if seed < SQUARES else (30, 60)
        image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
        write_png(folder / f"{seed:02d}.png", image)
    return folder


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    dataset = RealISRDataset(sorted(photos.glob("*.png")), crop_size=32, buckets=[(h, w) for h, w in BUCKETS])
    write_shards(StreamPairs(dataset, samples=SQUARES + WIDES), folder, crop_size=32, shard_size=10_000, workers=0)
    return folder


def _consumed(config: Path, world: int) -> list[dict[str, Any]]:
    """What each micro-step consumed on all ranks together; a micro-step that was taken again consumed the same."""
    by_step: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for rank in range(world):
        own: dict[int, dict[str, Any]] = {}
        for line in Path(f"{config}.rank{rank}").read_text().splitlines():
            record = json.loads(line)
            assert own.setdefault(record["micro_step"], record) == record
        for micro_step, record in own.items():
            by_step[micro_step].append(record)
    assert sorted(by_step) == list(range(len(by_step)))
    assert all(len({tuple(record["shape"]) for record in records}) == 1 for records in by_step.values())
    return [record for micro_step in sorted(by_step) for record in by_step[micro_step]]


def _run(config: Path, world: int, monkeypatch: pytest.MonkeyPatch, *, dies_before: int = -1) -> None:
    monkeypatch.setenv("DIES_BEFORE", str(dies_before))
    expected = 0 if dies_before < 0 else -signal.SIGKILL
    for status, errors in run_on_ranks(world, _TRAIN_AND_TELL, [config], timeout=120):
        assert status == expected, errors[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "world", "workers"), [("shards", 1, 1), ("shards", 2, 3), ("photographs", 1, 0), ("photographs", 2, 1)]
)
def test_killed_in_mid_epoch_and_resumed_the_run_sees_every_sample_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path, shards: Path, source: str, world: int, workers: int
) -> None:
    data = {"train": str(shards), "workers": workers}
    if source == "photographs":
        data = {"train": str(photos), "workers": workers, "buckets": BUCKETS}
    config = tiny_config(
        tmp_path,
        data=data,
        training={"max_steps": 5, "batch_size": 2 // world, "checkpoint_steps": 2},
        framer={"weight": 0.1, "cutoff": 0.3},
    )
    _run(config, world, monkeypatch, dies_before=3)
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step-*")] == ["step-00000002"]
    _run(config, world, monkeypatch)
    consumed = _consumed(config, world)
    names = Counter(name for record in consumed for name in record["name"])
    assert names == Counter(f"{number:02d}" for number in range(SQUARES + WIDES))
    assert [index for record in consumed for index in record["index"]] == list(range(SQUARES + WIDES))
    assert {tuple(record["shape"][2:]) for record in consumed} == {(32, 32), (24, 48)}
    steps = read_steps(tmp_path)
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5]
    resolved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]
    assert (resolved["crop_size"], resolved["buckets"], resolved["degradation"]) == (32, BUCKETS, "light")
    assert "32 x 32, 24 x 48 pixels" in (tmp_path / "run/report.md").read_text()


def _message(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


def test_shards_that_contradict_the_configuration(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(tiny_config(tmp_path, data={"train": str(shards)}))
    assert "data.crop_size=64 (the shards have 32)" in _message(capsys, "--config", config, "data.crop_size=64")
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_shards(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = tmp_path / "shards", str(tiny_config(tmp_path, data={"train": str(tmp_path / "shards")}))
    for seed in (0, 1):
        shutil.rmtree(folder, ignore_errors=True)
        dataset = RealISRDataset(sorted(photos.glob("*.png"))[:SQUARES], crop_size=32, seed=seed)
        write_shards(StreamPairs(dataset, samples=6), folder, crop_size=32, shard_size=10**6, workers=0)
        status = main(["--config", config, f"training.max_steps={1 + seed}"])
        assert status == (2 if seed else 0)
    assert "is of a run with other settings: data.shards_fingerprint" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_photographs(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, step = tmp_path / "photos", tmp_path / "run/checkpoints/step-00000001"
    folder.mkdir()
    for path in sorted(photos.glob("*.png"))[:2]:
        shutil.copy(path, folder)
    config = str(tiny_config(tmp_path, data={"train": str(folder)}))
    assert main(["--config", config, "training.max_steps=1"]) == 0
    capsys.readouterr()
    (folder / "00.png").rename(folder / "02.png")
    message = _message(capsys, "--config", config, "training.max_steps=2")
    assert f"{step} is of a run with other settings: data.photographs_fingerprint 2 files, SHA-256" in message
    # The run's own configuration says it too.
    message = _message(capsys, "--config", str(tmp_path / "run/config.yaml"), "training.max_steps=2")
    assert "data.photographs_fingerprint=2 files, SHA-256" in message
    assert "photographs were added, removed, renamed or replaced" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_of_a_shard_that_does_not_decode(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    dataset = RealISRDataset(sorted(photos.glob("*.png"))[:SQUARES], crop_size=32)
    write_shards(StreamPairs(dataset, samples=6), tmp_path / "shards", crop_size=32, shard_size=10**6, workers=0)
    (shard,) = read_manifest(tmp_path / "shards").shards
    path = tmp_path / "shards" / shard.file
    path.write_bytes(path.read_bytes().replace(b"\x89PNG", b"\x00PNG", 1))
    config = tiny_config(tmp_path, data={"train": str(tmp_path / "shards"), "workers": workers})
    capsys.readouterr()
    assert main(["--config", str(config)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {path}: sample 000000000: hr.png does not decode" in message


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["data.buckets=[[32,32],[4,256]]"], "data.buckets [4, 256]: the model needs multiples of 4"),
        (["framer.cutoff=1.2", "data.buckets=[[32,32],[4,32]]"], "framer.cutoff 1.2 with data.buckets [4, 32]"),
    ],
)
def test_buckets_that_the_model_cannot_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], named: str
) -> None:
    assert named in _message(capsys, "--config", str(tiny_config(tmp_path)), *overrides)


def test_features_of_a_non_square_bucket_are_trained(tmp_path: Path, photos: Path) -> None:
    """Every bucket's crops give finite losses of every layer, in each feature space."""
    for space in ("hidden", "velocity"):
        config = tiny_config(
            tmp_path / space,
            data={"train": str(photos), "buckets": [[16, 32]], "crop_size": 32},
            framer={"feature_space": space},
            training={"max_steps": 2},
        )
        assert main(["--config", str(config)]) == 0
        for step in read_steps(tmp_path / space):
            assert torch.tensor(step["layers"]["intra"]).isfinite().all()
