"""The same run on other engines, on more ranks, with recomputation: the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import read_steps, tiny_config, train_on_ranks

pytestmark = pytest.mark.slow

ONE_RANK: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"training": {"activation_checkpointing": True}},
    "zero1": {"deepspeed": {"zero_stage": 1}},
    "zero2": {"deepspeed": {"zero_stage": 2}},
    "zero3": {"deepspeed": {"zero_stage": 3}},
    "zero3-checkpointing": {
        "deepspeed": {"zero_stage": 3},
        "training": {"activation_checkpointing": True},
    },
    "accumulation": {"training": {"batch_size": 2, "gradient_accumulation_steps": 2}},
    "x0-space": {"framer": {"feature_space": "x0"}},
    "x0-space-checkpointing": {"framer": {"feature_space": "x0"}, "training": {"activation_checkpointing": True}},
    "bf16": {"training": {"precision": "bf16"}, "deepspeed": {"zero_stage": 2}},
    "fp16": {"training": {"precision": "fp16"}, "deepspeed": {"zero_stage": 2, "offload_optimizer": "cpu"}},
    "fp16-zero3": {"training": {"precision": "fp16"}, "deepspeed": {"zero_stage": 3}},
    "bf16-zero3": {"training": {"precision": "bf16"}, "deepspeed": {"zero_stage": 3}},
    "bf16-zero2-accumulation": {
        "training": {"precision": "bf16", "batch_size": 2, "gradient_accumulation_steps": 2},
        "deepspeed": {"zero_stage": 2},
    },
}
RESUMED = (
    "zero1",
    "zero2",
    "zero3",
    "accumulation",
    "bf16",
    "bf16-zero3",
    "bf16-zero2-accumulation",
    "fp16",
    "fp16-zero3",
)
TWO_RANKS: dict[str, dict[str, Any]] = {
    "two-zero0": {"training": {"batch_size": 2}},
    "two-zero2": {"training": {"batch_size": 2}, "deepspeed": {"zero_stage": 2}},
    "two-zero3": {"training": {"batch_size": 2}, "deepspeed": {"zero_stage": 3}},
    "two-zero3-x0-checkpointing": {
        "training": {"batch_size": 2, "activation_checkpointing": True},
        "deepspeed": {"zero_stage": 3},
        "framer": {"feature_space": "x0"},
    },
}
TWO_RANKS_RESUMED = ("two-zero2", "two-zero3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, each in a folder of its name."""
    folder = tmp_path_factory.mktemp("parity")
    for world_size, cases, resumed in ((1, ONE_RANK, RESUMED), (2, TWO_RANKS, TWO_RANKS_RESUMED)):
        configs = []
        # Stage 3 last: DeepSpeed then replaces torch's linear function, in the whole process, by one that rounds
        # differently.
        for name in sorted(cases, key=lambda name: ("zero3" in name, name)):
            configs.append(tiny_config(folder / name, **cases[name]))
            if name in resumed:
                halfway = {**cases[name], "training": {**cases[name].get("training", {}), "max_steps": 2}}
                interrupted = folder / f"{name}-resumed"
                configs.append(tiny_config(interrupted, **halfway).rename(interrupted / "halfway.yaml"))
                configs.append(tiny_config(interrupted, **cases[name]))
        train_on_ranks(world_size, configs)
    return folder


@pytest.mark.parametrize("name", [*RESUMED, *TWO_RANKS_RESUMED])
def test_resumed_halfway_equals_bit_for_bit(runs: Path, name: str) -> None:
    resumed = runs / f"{name}-resumed"
    assert read_steps(resumed) == read_steps(runs / name)
    weights, expected = (
        load_file(folder / "run/export/diffusion_pytorch_model.safetensors") for folder in (resumed, runs / name)
    )
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def _assert_same_run(runs: Path, name: str, reference: str, tolerance: float) -> None:
    steps, expected = read_steps(runs / name), read_steps(runs / reference)
    assert [s["step"] for s in steps] == [1, 2, 3, 4]
    for step, other in zip(steps, expected, strict=True):
        for key in ("loss", "noise_loss", "framer_loss", "gradient_norm"):
            assert step[key] == pytest.approx(other[key], rel=tolerance), (step["step"], key)
        for key in ("intra", "inter", "weight_lf", "weight_hf", "align_lf", "align_hf"):
            assert step["layers"][key] == pytest.approx(other["layers"][key], rel=tolerance, abs=tolerance)
        assert step["samples"] == other["samples"]
    weights = load_file(runs / name / "run/export/diffusion_pytorch_model.safetensors")
    other_weights = load_file(runs / reference / "run/export/diffusion_pytorch_model.safetensors")
    assert weights.keys() == other_weights.keys()
    for key, value in weights.items():
        assert torch.isfinite(value).all(), key
        # AdamW divides by the gradient's size: where that is rounding noise, a step may differ by the learning rate.
        assert (value - other_weights[key]).abs().mean() < tolerance, key


@pytest.mark.parametrize(
    "name",
    ["checkpointing", "zero1", "zero2", "zero3", "zero3-checkpointing", "two-zero0", "two-zero2", "two-zero3"],
)
def test_equals_the_plain_run(runs: Path, name: str) -> None:
    _assert_same_run(runs, name, "plain", 2e-4)


@pytest.mark.parametrize("name", ["x0-space-checkpointing", "two-zero3-x0-checkpointing"])
def test_equals_in_feature_space_x0(runs: Path, name: str) -> None:
    _assert_same_run(runs, name, "x0-space", 2e-4)


@pytest.mark.parametrize(
    ("name", "reference", "tolerance"),
    [
        ("bf16", "plain", 2e-2),
        ("fp16", "plain", 2e-3),
        ("bf16-zero3", "bf16", 2e-2),
        ("fp16-zero3", "fp16", 2e-3),
    ],
)
def test_equals_in_half_precision(runs: Path, name: str, reference: str, tolerance: float) -> None:
    _assert_same_run(runs, name, reference, tolerance)


def test_the_comparisons_can_fail(runs: Path) -> None:
    with pytest.raises(AssertionError):
        _assert_same_run(runs, "x0-space", "plain", 2e-4)


def test_accumulation_sees_the_same_samples(runs: Path) -> None:
    # The noise loss is a mean over samples; in-batch negatives come from one forward pass, so FRAMER differs.
    plain, accumulated = read_steps(runs / "plain"), read_steps(runs / "accumulation")
    assert accumulated[0]["noise_loss"] == pytest.approx(plain[0]["noise_loss"], rel=1e-5)
    assert [s["samples"] for s in accumulated] == [s["samples"] for s in plain]


def test_two_ranks_leave_one_report(runs: Path) -> None:
    report = (runs / "two-zero3/run/report.md").read_text()
    assert "ZeRO 3, fp32, 2 rank(s)" in report
