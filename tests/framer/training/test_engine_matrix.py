"""FRAMER under every engine setting: losses, gradients and weights of one plain process without an engine.

ZeRO stage x activation checkpointing x what trains x offload, on two ranks over gloo. Everything in stage 3 is
partitioned, for a tiny model would by default stay whole on every rank.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import STEPS, plain_run
from safetensors.torch import load_file
from training_runs import TINY, run_on_ranks, tiny_config

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.models.build import build_model
from framer.training.export import write_diffusers_folder

CHECKPOINTING: dict[str, Any] = {
    "none": False,
    "torch": True,
    "every-2nd": {"backend": "torch", "every": 2},
    "deepspeed": {"backend": "deepspeed"},
}
TRAINABLE = ("all", "attention", "control")
OFFLOAD: dict[str, dict[str, str]] = {"none": {}, "cpu": {"offload_optimizer": "cpu"}}
# In float32 the sums of two ranks and of gathered parts round in another order.
TOLERANCE = 2e-5
# With AdamW's usual eps a step is the gradient's sign where the gradient is rounding noise.
OPTIMIZER = {"lr": 1e-3, "eps": 1e-3}

Case = tuple[int, str, str, str]
ALL_CASES: list[Case] = [
    (stage, checkpointing, trainable, offload)
    for stage, checkpointing, trainable, offload in itertools.product(range(4), CHECKPOINTING, TRAINABLE, OFFLOAD)
    if stage > 0 or offload == "none"  # refused by the configuration
]
FAST_CASES: list[Case] = [
    (0, "torch", "all", "none"),
    (1, "deepspeed", "attention", "cpu"),
    (2, "every-2nd", "control", "none"),
    (3, "torch", "attention", "none"),
    (3, "deepspeed", "control", "cpu"),
    (3, "every-2nd", "all", "cpu"),
]


def _name(case: Case) -> str:
    stage, checkpointing, trainable, offload = case
    return f"zero{stage}-{checkpointing}-{trainable}-{offload}"


def _pretrained(folder: Path) -> Path:
    """Random weights throughout: DiT's start has gates of zero, behind which attention gets no gradient."""
    config = load_config(TrainConfig, tiny_config(folder / "initial"))
    model = build_model(config.model, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    write_diffusers_folder(model, model.state_dict(), config, folder / "pretrained")
    return folder / "pretrained"


def _config(folder: Path, pretrained: Path, name: str, **sections: Any) -> Path:
    training = {"batch_size": 2, **sections.pop("training", {})}
    model = {"pretrained": str(pretrained), **sections.pop("model", {})}
    return tiny_config(folder / name, training=training, model=model, optimizer=OPTIMIZER, **sections)


def _run_cases(folder: Path, cases: list[Case], **everywhere: Any) -> Path:
    pretrained = _pretrained(folder)
    for trainable in TRAINABLE:
        path = _config(
            folder, pretrained, f"plain-{trainable}", model={"trainable": trainable}, training={"batch_size": 4}
        )
        torch.save(plain_run(load_config(TrainConfig, path)), folder / f"plain-{trainable}.pt")
    configs = []
    for case in sorted(cases):
        stage, checkpointing, trainable, offload = case
        engine = {**TINY["deepspeed"], "zero_stage": stage, **OFFLOAD[offload]}
        if stage == 3 and offload == "cpu":
            engine["offload_param"] = "cpu"
        configs.append(
            _config(
                folder,
                pretrained,
                _name(case),
                model={"trainable": trainable, **everywhere},
                training={"activation_checkpointing": CHECKPOINTING[checkpointing]},
                deepspeed=engine,
            )
        )
    program = Path(__file__).with_name("engine_cases.py").read_text()
    for status, errors in run_on_ranks(2, program, [folder, *configs], timeout=900):
        assert status == 0, errors[-4000:]
    return folder


def _relative_error(value: torch.Tensor, expected: torch.Tensor, scale: float) -> float:
    return float((value - expected).abs().max()) / scale


def _assert_equals_plain(folder: Path, case: Case, *, tolerance: float = TOLERANCE, plain: str | None = None) -> None:
    trainable = case[2]
    result = torch.load(folder / f"{_name(case)}.pt", weights_only=True)
    expected = torch.load(folder / f"plain-{plain or trainable}.pt", weights_only=True)
    assert len(result["losses"]) == STEPS
    for step in range(STEPS):
        assert result["losses"][step] == pytest.approx(expected["losses"][step], rel=tolerance), step
        gradients, wanted = result["gradients"][step], expected["gradients"][step]
        assert gradients.keys() == wanted.keys()
        largest = max(float(gradient.abs().max()) for gradient in wanted.values())
        for name in wanted:
            assert _relative_error(gradients[name], wanted[name], largest) < tolerance, (step, name)
    assert result["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        assert torch.isfinite(result["weights"][name]).all(), name
        assert _relative_error(result["weights"][name], weight, 1.0) < tolerance, name


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run_cases(tmp_path_factory.mktemp("engines"), FAST_CASES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run_cases(tmp_path_factory.mktemp("matrix"), ALL_CASES)


@pytest.mark.parametrize("case", FAST_CASES, ids=_name)
def test_an_engine_equals_plain_torch(fast: Path, case: Case) -> None:
    _assert_equals_plain(fast, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL_CASES, ids=_name)
def test_every_engine_equals_plain_torch(whole: Path, case: Case) -> None:
    _assert_equals_plain(whole, case)


@pytest.mark.slow
def test_compiled_blocks_equal_plain_torch(tmp_path: Path) -> None:
    case = (2, "every-2nd", "attention", "none")
    _run_cases(tmp_path, [case], compile_blocks=True)
    _assert_equals_plain(tmp_path, case)


def test_the_comparison_can_fail(fast: Path) -> None:
    with pytest.raises(AssertionError):
        _assert_equals_plain(fast, FAST_CASES[0], plain="control")
    with pytest.raises(AssertionError):
        _assert_equals_plain(fast, FAST_CASES[1], tolerance=1e-12)


@pytest.mark.parametrize("case", FAST_CASES, ids=_name)
def test_what_is_frozen_stays_and_what_trains_moves(fast: Path, case: Case) -> None:
    before = load_file(fast / "pretrained/diffusion_pytorch_model.safetensors")
    result = torch.load(fast / f"{_name(case)}.pt", weights_only=True)
    moved = {name for name, weight in result["weights"].items() if not torch.equal(weight, before[name])}
    assert moved == result["gradients"][0].keys()
    marks = {"all": "", "attention": ".attn.", "control": "pos_embed.proj"}
    assert moved == {name for name in before if marks[case[2]] in name and name != "pos_embed.pos_embed"}
