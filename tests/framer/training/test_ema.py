"""The average of the weights: under every engine, in evaluation and export, and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_runs import TINY, read_steps, run_on_ranks

from framer.config.health import EmaConfig
from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.errors import ConfigError, UserError
from framer.training.ema import Ema
from framer.training.trainer import Trainer

_EVERY_ENGINE = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from framer.config.health import EmaConfig
from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.training import engine as engines
from framer.training.ema import Ema
from framer.training.ranks import start_distributed

start_distributed()
rank = dist.get_rank()
def weights(values):
    return {name: value.detach().clone() for name, value in values}

def check(stage, precision, persistent, offload):
    config = build_config(TrainConfig, {
        "output_dir": "unused",
        "training": {"batch_size": 4, "precision": precision},
        "optimizer": {"lr": 1e-2},
        "deepspeed": {
            "zero_stage": stage,
            "stage3_param_persistence_threshold": persistent,
            "offload_optimizer": offload,
        },
    }, source="test")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 7), nn.Linear(7, 3))
    model[2].bias.requires_grad_(False)
    engine = engines.start_engine(model, config)
    ema = Ema(engine, EmaConfig(decay=0.7))
    def whole():
        values = weights(engines.master_weights(engine))
        return nn.ParameterDict({name.replace(".", "_"): value.float() for name, value in values.items()})
    def average(averages, now, n):
        torch._foreach_lerp_(averages, now, 1 - min(0.7, int(n) / (9 + int(n))))
    reference = torch.optim.swa_utils.AveragedModel(whole(), multi_avg_fn=average)
    reference.n_averaged += 1  # it would take the first update for the initial weights
    dtype = next(engine.module.parameters()).dtype
    def train(batch):
        generator = torch.Generator().manual_seed(10 * batch + rank)
        engine.backward(engine(torch.randn(4, 6, generator=generator).to(dtype)).float().square().mean())
        engines.step(engine)
        ema.update()
        reference.update_parameters(whole())
    for batch in range(8):
        train(batch)
    live, masters = weights(engines.gathered_parameters(engine.module)), weights(engines.master_weights(engine))
    with ema.swapped_in():
        shown, averaged = weights(engines.gathered_parameters(engine.module)), weights(engines.master_weights(engine))
    case = (stage, precision, persistent, offload)
    for name, expected in reference.module.items():
        name = "".join(c if c != "_" else "." for c in name)
        assert (averaged[name].float() - expected).abs().max() < 1e-6, (case, name)
        assert torch.equal(shown[name], averaged[name].to(shown[name].dtype)), (case, name)
    assert (averaged["0.weight"] - masters["0.weight"]).abs().max() > 1e-3, case
    assert torch.equal(shown["2.bias"], live["2.bias"]), case
    back, masters_back = weights(engines.gathered_parameters(engine.module)), weights(engines.master_weights(engine))
    assert all(torch.equal(back[name], live[name]) for name in live), case
    assert all(torch.equal(masters_back[name], masters[name]) for name in masters), case
    # A restored average goes on as the saved one would have.
    state = {name: value.clone() for name, value in ema.state_dict().items()}
    for value in ema._average.values():
        value.zero_()
    ema.load_state_dict(state)
    train(8)
    with ema.swapped_in():
        averaged = weights(engines.master_weights(engine))
    assert (averaged["0.weight"].float() - reference.module["0_weight"]).abs().max() < 1e-6, case
    engine.destroy()

cases = [(0, "fp32"), (2, "bf16"), (3, "fp32")]
if sys.argv[1] == "thorough":  # stage 3 last: it replaces torch's linear function for good
    cases = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")]
for stage, precision in cases:
    check(stage, precision, 0, None)
    if sys.argv[1] == "thorough" and stage > 0:
        check(stage, precision, 0, "cpu")
    if stage == 3:
        check(stage, precision, 30, None)
"""


@pytest.mark.parametrize(
    ("world_size", "how"),
    [
        (1, "quick"),
        pytest.param(1, "thorough", marks=pytest.mark.slow),
        pytest.param(2, "thorough", marks=pytest.mark.slow),
    ],
)
def test_equals_torchs_average_and_leaves_the_model_as_it_was(world_size: int, how: str) -> None:
    for status, errors in run_on_ranks(world_size, _EVERY_ENGINE, [Path(how)], timeout=300):
        assert status == 0, errors[-3000:]


def _config(folder: Path, **training: Any) -> TrainConfig:
    average = {"decay": 0.8, "every": 2}
    sections = {**TINY, "output_dir": str(folder), "training": {**TINY["training"], "ema": average, **training}}
    return build_config(TrainConfig, sections, source="test")


def test_export_and_samples_are_of_the_average(tmp_path: Path) -> None:
    trainer = Trainer(_config(tmp_path / "run", sample_steps=2))
    assert trainer.ema is not None
    name = "transformer_blocks.0.ff.net.2.weight"
    seen = [trainer.model.get_parameter(name).detach().clone()]
    original = trainer._optimizer_step

    def step(batches: Any) -> Any:
        metrics = original(batches)
        seen.append(trainer.model.get_parameter(name).detach().clone())
        return metrics

    trainer._optimizer_step = step  # type: ignore[method-assign]
    trainer.train()
    # Updates after steps 2 and 4, with the warm-up's decays.
    expected = 0.1 * seen[0] + 0.9 * seen[2]
    expected = 2 / 11 * expected + 9 / 11 * seen[4]
    exported = load_file(tmp_path / "run/export/diffusion_pytorch_model.safetensors")[name]
    assert (exported - expected).abs().max() < 1e-6
    assert not torch.equal(exported, seen[4])
    assert torch.equal(trainer.model.get_parameter(name), seen[4])
    assert "average of the weights (decay 0.8)" in (tmp_path / "run/report.md").read_text()


def test_the_average_does_not_change_the_run_and_survives_a_resume(tmp_path: Path) -> None:
    Trainer(_config(tmp_path / "whole/run", sample_steps=1)).train()
    Trainer(_config(tmp_path / "plain/run", ema={})).train()
    # Stopped between two updates.
    Trainer(_config(tmp_path / "resumed/run", max_steps=3)).train()
    Trainer(_config(tmp_path / "resumed/run")).train()
    assert read_steps(tmp_path / "whole") == read_steps(tmp_path / "plain") == read_steps(tmp_path / "resumed")
    whole, plain, resumed = (
        load_file(tmp_path / folder / "run/export/diffusion_pytorch_model.safetensors")
        for folder in ("whole", "plain", "resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], plain[name]) for name in whole)


class _Engine:
    """What the average asks of an engine without ZeRO."""

    def __init__(self, *sizes: int) -> None:
        self.module = nn.Sequential(*[nn.Linear(size, 2) for size in sizes])
        self.optimizer = torch.optim.AdamW(self.module.parameters())


def test_decay_warms_up_to_its_value() -> None:
    ema = Ema(_Engine(3), EmaConfig(decay=0.5))  # type: ignore[arg-type]
    decays = []
    for _ in range(12):
        decays.append(ema.decay)
        ema.update()
    assert decays[:3] == [1 / 10, 2 / 11, 3 / 12]
    assert decays[8:] == [0.5] * 4
    assert Ema(_Engine(3), EmaConfig(decay=0.5, warmup=False)).decay == 0.5  # type: ignore[arg-type]


def test_an_error_while_swapped_in_brings_the_weights_back() -> None:
    engine = _Engine(3)
    ema = Ema(engine, EmaConfig(decay=0.5))  # type: ignore[arg-type]
    with torch.no_grad():
        engine.module[0].weight.add_(1.0)
    live = engine.module[0].weight.detach().clone()

    def evaluate() -> None:
        with ema.swapped_in():
            assert not torch.equal(engine.module[0].weight, live)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        evaluate()
    assert torch.equal(engine.module[0].weight, live)


def test_the_state_of_another_model_is_refused() -> None:
    ema = Ema(_Engine(3), EmaConfig(decay=0.5))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"does not fit this rank's: average\.0\.weight"):
        ema.load_state_dict(Ema(_Engine(4), EmaConfig(decay=0.5)).state_dict())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"training\.ema"):
        ema.load_state_dict({})


@pytest.mark.parametrize(("ema", "named"), [({"every": 2}, "no effect with decay null"), ({"decay": 1.0}, "decay")])
def test_settings_that_make_no_sense(ema: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_config(TrainConfig, {"output_dir": "x", "training": {"ema": ema}}, source="test")
