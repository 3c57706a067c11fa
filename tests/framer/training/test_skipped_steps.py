"""Steps whose loss or gradient is not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_runs import TINY, run_on_ranks

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.training.health import NonFiniteLossError, SkippedSteps, non_finite_weight, spoiled_if_not_finite
from framer.training.trainer import Trainer

# Trains on batches 1, bad, 2, 3 and on 1, 2, 3, and compares weights, moments and step counts bit for bit.
_EVERY_ENGINE = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.training.engine import master_weights, start_engine, step
from framer.training.ranks import start_distributed

start_distributed()
rank, ranks = dist.get_rank(), dist.get_world_size()

def train(config, batches, bad, poison):
    torch.manual_seed(0)
    engine = start_engine(nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)), config)
    dtype = next(engine.module.parameters()).dtype
    outcomes = []
    for batch in batches:
        for micro_step in range(config.training.gradient_accumulation_steps):
            generator = torch.Generator().manual_seed(100 * batch + 10 * micro_step + rank)
            output = engine(torch.randn(4, 6, generator=generator).to(dtype)).float()
            if batch == 0 and (micro_step, rank) == bad:
                output = poison(output)
            engine.backward(output.square().mean())
            outcome = step(engine)
        outcomes.append(outcome)
    state = {name: value.clone() for name, value in master_weights(engine)}
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    moments = [torch.as_tensor(v) for s in inner.state.values() for _, v in sorted(s.items())]
    engine.destroy()
    return state, moments, outcomes

class LastBiasAlone(torch.autograd.Function):
    # A finite loss of which one gradient is not.
    @staticmethod
    def forward(context, output):
        return output.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * torch.tensor([1.0, float("nan"), 1.0])

def check(stage, precision, accumulation, bad, poison):
    config = build_config(TrainConfig, {
        "output_dir": "unused",
        "training": {"batch_size": 4, "precision": precision, "gradient_accumulation_steps": accumulation},
        "optimizer": {"lr": 1e-2},
        "deepspeed": {"zero_stage": stage, "stage3_param_persistence_threshold": 0},
    }, source="test")
    weights, moments, outcomes = train(config, [1, 0, 2, 3], bad, poison)
    expected, expected_moments, _ = train(config, [1, 2, 3], bad, poison)
    case = (stage, precision, accumulation, bad, poison)
    assert [outcome.skipped for outcome in outcomes] == [False, True, False, False], case
    assert not torch.isfinite(torch.tensor(outcomes[1].gradient_norm)), case
    assert len(moments) == len(expected_moments) > 0, case
    assert all(torch.equal(weights[name], expected[name]) for name in expected), case
    assert all(torch.equal(a, b) for a, b in zip(moments, expected_moments)), case
    return outcomes[1].bad_parameter

nan_loss = lambda output: output * float("nan")
last_column = lambda output: torch.cat([output[:, :2], output[:, 2:] * float("nan")], dim=1)
thorough = sys.argv[1] == "thorough"
engines = [(0, "fp32"), (2, "bf16"), (3, "fp32")]
if thorough:  # stage 3 last: it replaces torch's linear function for good
    engines = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")]
for stage, precision in engines:
    for accumulation, bad in [(1, (0, ranks - 1)), (2, (0, 0)), (2, (1, ranks - 1))][0 if thorough else 1:]:
        assert check(stage, precision, accumulation, bad, nan_loss) == "0.weight"
    assert check(stage, precision, 1, (0, 0), LastBiasAlone.apply) == "0.weight"
    # Only the last layer's weights get a gradient that is not finite, through its third output alone.
    class Detached(nn.Linear):
        def forward(self, x):
            return super().forward(x.detach())
    linear, nn.Linear = nn.Linear, Detached
    assert check(stage, precision, 1, (0, 0), last_column) == "2.weight"
    nn.Linear = linear

def check_half(stage):
    # The loss scale goes down from 4 to 1 and stays there; only at 1 is it worth looking for the parameter.
    scaling = {"initial_scale_power": 2, "hysteresis": 1}
    config = build_config(TrainConfig, {
        "output_dir": "unused",
        "training": {"batch_size": 4, "precision": "fp16", "loss_scaling": scaling},
        "deepspeed": {"zero_stage": stage, "stage3_param_persistence_threshold": 0},
    }, source="test")
    engine = start_engine(nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)), config)
    outcomes = []
    for batch in range(6):
        loss = engine(torch.randn(4, 6).half()).float().square().mean()
        engine.backward(loss * (1e9 if 1 <= batch <= 4 else 1))
        outcome = step(engine)
        outcomes.append((outcome.skipped, outcome.loss_scale, outcome.bad_parameter))
    good, at_lowest = (False, 1.0, None), (True, 1.0, "0.weight")
    assert outcomes == [(False, 4.0, None), (True, 4.0, None), (True, 2.0, None), at_lowest, at_lowest, good], outcomes
    engine.destroy()

if thorough:
    for stage in (2, 3):
        check_half(stage)
"""


@pytest.mark.parametrize(
    ("world_size", "how"),
    [
        (1, "quick"),
        pytest.param(1, "thorough", marks=pytest.mark.slow),
        pytest.param(2, "thorough", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_as_if_it_had_never_seen_the_bad_batch(world_size: int, how: str) -> None:
    for status, errors in run_on_ranks(world_size, _EVERY_ENGINE, [Path(how)], timeout=300):
        assert status == 0, errors[-3000:]


def _trainer(folder: Path, health: dict[str, Any], **training: Any) -> Trainer:
    sections = {
        **TINY,
        "output_dir": str(folder),
        "health": health,
        "training": {**TINY["training"], **training},
    }
    return Trainer(build_config(TrainConfig, sections, source="test"))


def _spoil(trainer: Trainer, steps: set[int]) -> None:
    """Lets a block's output be NaN in some optimizer steps, as a bad batch does."""

    def spoil(module: nn.Module, args: object, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        bad = trainer.micro_steps // trainer.config.training.gradient_accumulation_steps + 1 in steps
        return (output[0], output[1] * float("nan")) if bad and trainer.model.training else output

    trainer.model.transformer_blocks[1].register_forward_hook(spoil)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_bad_steps_are_skipped_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = _trainer(tmp_path / "run", {"max_skipped_steps": 2}, max_steps=6, gradient_accumulation_steps=2)
    _spoil(trainer, {2, 3, 5})
    before = {}

    def remember(step: int) -> None:
        before[step] = trainer.model.transformer_blocks[0].ff.net[2].weight.detach().clone()

    original = trainer._optimizer_step

    def step(batches: Any) -> Any:
        remember(trainer.step)
        return original(batches)

    trainer._optimizer_step = step  # type: ignore[method-assign]
    trainer.train()
    lines = _lines(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [False, True, True, False, True, False]
    assert [line["skipped_steps"] for line in lines] == [0, 1, 2, 2, 3, 3]
    assert [line["loss"] is None for line in lines] == [False, True, True, False, True, False]
    assert "the first layer whose output is not finite is transformer_blocks.1" in lines[1]["skip_reason"]
    assert lines[0]["skip_reason"] is None
    assert torch.equal(before[1], before[2])
    assert torch.equal(before[2], before[3])
    assert not torch.equal(before[3], before[4])
    warnings = [line for line in capsys.readouterr().err.splitlines() if " skipped: " in line]
    assert len(warnings) == 3
    assert warnings[1].startswith("step 3 skipped: the loss is not finite")
    assert warnings[1].endswith("(2 in a row, at most 2; 2 in all)")
    assert (tmp_path / "run/report.md").is_file()


def test_too_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path / "run", {"max_skipped_steps": 2}, max_steps=9, checkpoint_steps=1)
    _spoil(trainer, {2, 4, 5, 6, 7})
    with pytest.raises(
        NonFiniteLossError, match=r"step 6: .*3 steps in a row \(health.max_skipped_steps 2\)"
    ) as caught:
        trainer.train()
    assert "step-00000005" in str(caught.value)
    assert [line["skipped"] for line in _lines(tmp_path / "run")] == [False, True, False, True, True]


def test_the_counts_survive_a_resume(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path / "run", {"max_skipped_steps": 2}, max_steps=4, checkpoint_steps=4)
    _spoil(trainer, {1, 3, 4})
    trainer.train()
    resumed = _trainer(tmp_path / "run", {"max_skipped_steps": 2}, max_steps=6)
    assert (resumed.skipped.total, resumed.skipped.consecutive) == (3, 2)
    _spoil(resumed, {5})
    with pytest.raises(NonFiniteLossError, match=r"step 5: .*3 steps in a row"):
        resumed.train()


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_a_bad_gradient_of_a_good_loss_names_its_parameter(tmp_path: Path, zero_stage: int) -> None:
    sections = {
        **TINY,
        "output_dir": str(tmp_path / "run"),
        "deepspeed": {"zero_stage": zero_stage},
        "health": {"max_skipped_steps": 0},
    }
    trainer = Trainer(build_config(TrainConfig, sections, source="test"))
    trainer.model.transformer_blocks[1].attn.to_q.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"such a gradient is transformer_blocks\.1\.attn\.to_q\.weight"):
        trainer.train()
    assert list((tmp_path / "run/checkpoints").iterdir()) == []
    assert (tmp_path / "run/metrics.jsonl").read_text() == ""


def test_overflows_of_the_loss_scale_count_apart_until_it_is_at_its_lowest() -> None:
    steps = SkippedSteps()
    assert steps.count(finite_loss=True, loss_scale=65536.0, lowest_scale=1.0)
    assert steps.count(finite_loss=True, loss_scale=2.0, lowest_scale=1.0)
    assert (steps.total, steps.consecutive, steps.overflows) == (0, 0, 2)
    assert not steps.count(finite_loss=True, loss_scale=1.0, lowest_scale=1.0)
    # A loss that is not finite overflowed in the forward pass, which no loss scale mends.
    assert not steps.count(finite_loss=False, loss_scale=65536.0, lowest_scale=1.0)
    assert not steps.count(finite_loss=True, loss_scale=1.0, lowest_scale=math.inf)
    assert SkippedSteps(**steps.state_dict()) == SkippedSteps(total=3, consecutive=3, overflows=2)


def test_an_infinite_loss_with_finite_gradients_spoils_them() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    spoiled_if_not_finite(weight.sum() + float("inf")).backward()
    assert weight.grad is not None
    assert weight.grad.isnan().all()


def test_a_finite_loss_stays_what_it_is() -> None:
    weight = torch.tensor([0.1, -0.7], requires_grad=True)
    loss = weight.square().sum()
    (expected,) = torch.autograd.grad(loss, weight, retain_graph=True)
    same = spoiled_if_not_finite(loss)
    assert torch.equal(same, loss)
    assert torch.equal(torch.autograd.grad(same, weight)[0], expected)


def test_no_step_is_worth_skipping_when_a_weight_is_not_finite(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path / "run", {"max_skipped_steps": 5})
    assert non_finite_weight(trainer.model) is None
    with torch.no_grad():
        trainer.model.transformer_blocks[2].ff.net[2].weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteLossError, match=r"the weight transformer_blocks\.2\.ff\.net\.2\.weight is not finite"):
        trainer.train()
