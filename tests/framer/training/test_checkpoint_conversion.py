"""Checkpoints taken elsewhere: to another number of ranks, and to a diffusers folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import read_steps, run_on_ranks, tiny_config, train_on_ranks

from framer import cli
from framer.training import command as train_command

pytestmark = pytest.mark.slow

BATCH = 4
WEIGHTS = "diffusion_pytorch_model.safetensors"
PRECISIONS = ("fp32", "bf16")
# Ranks that saved, ranks that go on, ZeRO stage, precision.
Move = tuple[int, int, int, str]
MOVES: list[Move] = [(2, 1, 2, "bf16"), (2, 1, 3, "fp32")]
MORE_MOVES: list[Move] = [
    (2, 1, 2, "fp32"),
    (2, 1, 0, "fp32"),
    (2, 1, 1, "fp32"),
    (2, 1, 3, "bf16"),
    (1, 2, 0, "fp32"),
    (1, 2, 1, "fp32"),
    (1, 2, 2, "bf16"),
    (1, 2, 2, "fp32"),
    (1, 2, 3, "fp32"),
]
FROZEN_MOVES: list[Move] = [*((2, 1, stage, "fp32") for stage in range(4)), (2, 1, 3, "bf16")]


def _settings(stage: int, precision: str, ranks: int, max_steps: int) -> dict[str, Any]:
    training = {"precision": precision, "batch_size": BATCH // ranks, "max_steps": max_steps, "checkpoint_steps": 2}
    return {"training": training, "deepspeed": {"zero_stage": stage}}


def _name(move: Move) -> str:
    return "{}-to-{}-zero{}-{}".format(*move)


def _run(folder: Path, moves: list[Move], **sections: Any) -> Path:
    # Stage 3 last: it changes how the whole process rounds.
    moves = sorted(moves, key=lambda move: move[2])
    first: dict[int, list[Path]] = {1: [], 2: []}
    second: dict[int, list[Path]] = {1: [], 2: []}
    for move in moves:
        before, after, stage, precision = move
        first[before].append(tiny_config(folder / _name(move), **_settings(stage, precision, before, 2), **sections))
        halfway = first[before][-1].rename(folder / _name(move) / "halfway.yaml")
        first[before][-1] = halfway
        second[after].append(tiny_config(folder / _name(move), **_settings(stage, precision, after, 4), **sections))
    whole = [
        tiny_config(folder / precision, **_settings(0 if precision == "fp32" else 2, precision, 1, 4), **sections)
        for precision in PRECISIONS
    ]
    if first[1]:
        train_on_ranks(1, first[1])
    train_on_ranks(2, first[2])
    train_on_ranks(1, whole + second[1])
    if second[2]:
        train_on_ranks(2, second[2])
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run(tmp_path_factory.mktemp("moves"), MOVES)


@pytest.fixture(scope="module")
def more_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run(tmp_path_factory.mktemp("more-moves"), MORE_MOVES)


def _assert_went_on(runs: Path, move: Move) -> None:
    tolerance = 2e-4 if move[3] == "fp32" else 2e-2
    steps, expected = read_steps(runs / _name(move)), read_steps(runs / move[3])
    assert [step["samples"] for step in steps] == [step["samples"] for step in expected]
    for step, other in zip(steps, expected, strict=True):
        for key in ("loss", "noise_loss", "framer_loss", "gradient_norm"):
            assert step[key] == pytest.approx(other[key], rel=tolerance), (step["step"], key)
    weights, others = (load_file(runs / name / "run/export" / WEIGHTS) for name in (_name(move), move[3]))
    for key, value in weights.items():
        assert (value - others[key]).abs().mean() < tolerance, key
    assert not list((runs / _name(move) / "run/checkpoints").glob(".*"))


def _assert_exports_the_same(run: Path, folder: Path) -> None:
    assert cli.main(["export", str(run / "checkpoints/step-00000004"), "-o", str(folder)]) == 0
    names = sorted(path.name for path in (run / "export").iterdir())
    assert names == sorted(path.name for path in folder.iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (run / "export" / name).read_bytes(), name


@pytest.mark.parametrize("move", MOVES, ids=_name)
def test_goes_on_with_another_number_of_ranks(runs: Path, move: Move) -> None:
    _assert_went_on(runs, move)


@pytest.mark.parametrize("move", MORE_MOVES, ids=_name)
def test_goes_on_with_another_number_of_ranks_in_every_stage(more_runs: Path, move: Move) -> None:
    _assert_went_on(more_runs, move)


@pytest.mark.parametrize("move", MOVES, ids=_name)
def test_export_of_a_checkpoint_equals_the_run_s(runs: Path, move: Move, tmp_path: Path) -> None:
    _assert_exports_the_same(runs / _name(move) / "run", tmp_path / "export")


@pytest.mark.parametrize("move", MORE_MOVES, ids=_name)
def test_export_of_a_checkpoint_equals_the_run_s_in_every_stage(more_runs: Path, move: Move, tmp_path: Path) -> None:
    # Of one rank and of two.
    _assert_exports_the_same(more_runs / _name(move) / "run", tmp_path / "export")


@pytest.fixture(scope="module")
def partly_frozen_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trainable = {"trainable": ["control", "transformer_blocks.*.norm1.*", "proj_out.*"]}
    return _run(tmp_path_factory.mktemp("frozen"), FROZEN_MOVES, model=trainable)


@pytest.mark.parametrize("move", FROZEN_MOVES, ids=_name)
def test_frozen_parameters_go_along(partly_frozen_runs: Path, move: Move, tmp_path: Path) -> None:
    _assert_went_on(partly_frozen_runs, move)
    _assert_exports_the_same(partly_frozen_runs / _name(move) / "run", tmp_path / "export")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_export_in_another_precision(runs: Path, tmp_path: Path, dtype: str) -> None:
    run = runs / "bf16/run"
    checkpoint = str(run / "checkpoints/step-00000004")
    assert cli.main(["export", checkpoint, "-o", str(tmp_path / "export"), "--dtype", dtype]) == 0
    weights, master = load_file(tmp_path / "export" / WEIGHTS), load_file(run / "export" / WEIGHTS)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert all(torch.equal(value, master[key].to(wanted)) for key, value in weights.items())
    assert {value.dtype for value in weights.values()} == {wanted}


def test_master_weights_are_exported_not_the_rounded_ones(runs: Path) -> None:
    weights = load_file(runs / "bf16/run/export" / WEIGHTS)
    for name in ("pos_embed.proj.weight", "transformer_blocks.0.attn.to_q.weight", "proj_out.weight"):
        assert not torch.equal(weights[name], weights[name].bfloat16().float())


_SHARE = """
from deepspeed.utils import safe_get_local_fp32_param

def share(parameter):
    if hasattr(parameter, "ds_id"):
        return safe_get_local_fp32_param(parameter)
    if not hasattr(parameter, "_hp_mapping"):
        return parameter
    return None if parameter._hp_mapping is None else parameter._hp_mapping.get_hp_fragment()
"""

_SAVE_AN_AVERAGE = f"""
import sys
{_SHARE}
from framer.training.checkpoint import Checkpointer
from framer.training.command import main

save = Checkpointer.save
def save_with_average(self, engine, state, **_):
    shares = {{n: share(p) for n, p in engine.module.named_parameters()}}
    average = {{f"average.{{n}}": 2 * part.detach() for n, part in shares.items() if part is not None}}
    save(self, engine, state, rank_state={{"ema": {{"updates": 1, **average}}}})
Checkpointer.save = save_with_average
for config in sys.argv[1:]:
    if main(["--config", config]):
        sys.exit(1)
"""


_SHARE_IT_OUT = f"""
import sys
{_SHARE}
import torch
from framer.training import checkpoint as checkpoints
from framer.training.trainer import Trainer
from framer.training.command import main

load = checkpoints.load_checkpoint
def load_and_compare(engine, checkpoint, **settings):
    loaded = load(engine, checkpoint, **settings)
    state = dict(loaded.rank_state["ema"])
    assert state.pop("updates") == 1
    shares = {{f"average.{{n}}": share(p) for n, p in engine.module.named_parameters()}}
    shares = {{n: part for n, part in shares.items() if part is not None}}
    assert state.keys() == shares.keys()
    for n, part in shares.items():
        assert torch.equal(state[n], 2 * part.detach()), n
    return loaded
checkpoints.load_checkpoint = load_and_compare
for config in sys.argv[1:]:
    if main(["--config", config]):
        sys.exit(1)
"""


def test_the_average_goes_along(tmp_path: Path) -> None:
    """Into exports, and to another number of ranks."""
    stages = (0, 2, 3)
    configs = [tiny_config(tmp_path / str(stage), **_settings(stage, "fp32", 2, 1)) for stage in stages]
    for status, errors in run_on_ranks(2, _SAVE_AN_AVERAGE, configs, timeout=300):
        assert status == 0, errors[-4000:]
    for config in configs:
        run = config.parent / "run"
        checkpoint = str(run / "checkpoints/step-00000001")
        assert cli.main(["export", checkpoint, "-o", str(config.parent / "export"), "--ema"]) == 0
        weights, master = (load_file(folder / "export" / WEIGHTS) for folder in (config.parent, run))
        assert weights.keys() == master.keys()
        for name, value in weights.items():
            assert torch.equal(value, master[name] if name == "pos_embed.pos_embed" else 2 * master[name]), name
    configs = [tiny_config(tmp_path / str(stage), **_settings(stage, "fp32", 1, 1)) for stage in stages]
    ((status, errors),) = run_on_ranks(1, _SHARE_IT_OUT, configs, timeout=300)
    assert status == 0, errors[-4000:]


def test_what_cannot_be_exported(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "fp32/run"
    checkpoint = str(run / "checkpoints/step-00000004")
    copy = tmp_path / "step-00000004"
    shutil.copytree(checkpoint, copy)
    with (copy / "mp_rank_00_model_states.pt").open("ab") as file:
        file.write(b"more")
    nvme = shutil.copytree(checkpoint, tmp_path / "nvme")
    (nvme / "offloaded_tensors").mkdir()
    for arguments, told in (
        ([str(nvme), "-o", str(tmp_path / "export")], "has its optimizer state as NVMe files"),
        ([checkpoint, "-o", str(run / "export")], "exists; name a new folder"),
        ([str(run / "nowhere"), "-o", str(tmp_path / "export")], "nowhere is not a checkpoint folder"),
        ([str(run / "export"), "-o", str(tmp_path / "export")], "manifest.json is missing"),
        ([str(copy), "-o", str(tmp_path / "export")], "step-00000004 is damaged: mp_rank_00_model_states.pt has"),
        ([checkpoint, "-o", str(tmp_path / "export"), "--ema"], "has no average of the weights"),
    ):
        assert cli.main(["export", *arguments]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "export").exists()


def test_another_number_of_samples_a_step_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = runs / _name((2, 1, 2, "bf16")) / "run/checkpoints/step-00000002"
    settings = _settings(2, "bf16", 1, 5)
    settings["training"] |= {"batch_size": 3, "resume": str(checkpoint)}
    assert train_command.main(["--config", str(tiny_config(tmp_path, **settings))]) == 2
    message = capsys.readouterr().err
    assert f"{checkpoint} was saved by 2 ranks, which took 4 samples a step; this run has 1 and would take 3" in message
    assert "so that they make 4" in message
