"""Adapters under the trainer: every engine, resuming, the average of the weights, checkpoints and exports."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from engine_cases import STEPS, plain_run
from safetensors.torch import load_file
from sd3 import model_inputs
from training_runs import TINY, read_steps, run_on_ranks, tiny_config, train_on_ranks

from framer import cli
from framer.config.loading import build_config, load_config
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.models.build import build_model
from framer.training.export import write_diffusers_folder
from framer.training.trainer import Trainer

LORA: dict[str, Any] = {"rank": 4, "alpha": 8, "train_also": ["control"]}
TOLERANCE = 2e-5
WEIGHTS = "run/export/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights throughout: DiT's start has gates of zero, behind which adapters get no gradient."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = load_config(TrainConfig, tiny_config(folder / "initial"))
    model = build_model(config.model, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    write_diffusers_folder(model, model.state_dict(), config, folder / "whole")
    return folder / "whole"


def _config(folder: Path, pretrained: Path, *, lora: dict[str, Any] = LORA, **sections: Any) -> Path:
    return tiny_config(folder, model={"pretrained": str(pretrained), "lora": lora}, **sections)


def _engine(stage: int) -> dict[str, Any]:
    return {**TINY["deepspeed"], "zero_stage": stage}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """Plain torch in one process, and two engines on two ranks."""
    folder = tmp_path_factory.mktemp("engines")
    optimizer = {"lr": 1e-3, "eps": 1e-3}
    plain = _config(folder / "plain", pretrained, optimizer=optimizer)
    torch.save(plain_run(load_config(TrainConfig, plain)), folder / "plain.pt")
    sections = {"optimizer": optimizer, "training": {"batch_size": 2, "activation_checkpointing": True}}
    configs = [_config(folder / f"zero{stage}", pretrained, deepspeed=_engine(stage), **sections) for stage in (0, 3)]
    program = Path(__file__).with_name("engine_cases.py").read_text()
    for status, errors in run_on_ranks(2, program, [folder, *configs], timeout=300):
        assert status == 0, errors[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero0", "zero3"])
def test_an_engine_equals_plain_torch(engines: Path, engine: str) -> None:
    result = torch.load(engines / f"{engine}.pt", weights_only=True)
    expected = torch.load(engines / "plain.pt", weights_only=True)
    for step in range(STEPS):
        assert result["losses"][step] == pytest.approx(expected["losses"][step], rel=TOLERANCE), step
        gradients, wanted = result["gradients"][step], expected["gradients"][step]
        assert gradients.keys() == wanted.keys()
        largest = max(float(gradient.abs().max()) for gradient in wanted.values())
        for name in wanted:
            assert float((gradients[name] - wanted[name]).abs().max()) < TOLERANCE * largest, (step, name)
    assert result["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        assert float((result["weights"][name] - weight).abs().max()) < TOLERANCE, name


@pytest.mark.parametrize("engine", ["plain", "zero0", "zero3"])
def test_adapters_and_what_trains_beside_them_move_and_the_rest_stays(
    engines: Path, pretrained: Path, engine: str
) -> None:
    result = torch.load(engines / f"{engine}.pt", weights_only=True)
    config = load_config(TrainConfig, engines / "plain" / "config.yaml")
    before = build_model(config.model, seed=config.seed).state_dict()
    moved = {name for name, value in result["weights"].items() if not torch.equal(value, before[name])}
    trained = {name for name in before if ".lora_" in name or name.startswith("pos_embed.proj.")}
    assert trained == result["gradients"][-1].keys()
    # The last block drops the text, so that nothing depends on what its text tokens ask for.
    assert trained - moved == {"transformer_blocks.3.attn.add_q_proj.lora_B.default.weight"}
    assert moved <= trained


def _load(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def _assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# Of one rank in this process in stage 0, else of two.
STAGES = [0, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
PRECISIONS = {0: "fp32", 2: "bf16", 3: "fp32"}


@pytest.fixture(scope="module", params=STAGES)
def stopped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """Two runs of four steps: at once, and stopped after two; dropout draws from the ranks' generators."""
    folder = tmp_path_factory.mktemp("stopped")
    ranks = 2 if request.param else 1
    training = {"batch_size": 4 // ranks, "precision": PRECISIONS[request.param], "ema": {"decay": 0.8}}
    sections = {"lora": {**LORA, "dropout": 0.3, "export": "adapter"}, "deepspeed": _engine(request.param)}
    whole = _config(folder / "whole", pretrained, training=training, **sections)
    half = _config(folder / "half", pretrained, training={**training, "max_steps": 2}, **sections)
    half = half.rename(half.with_name("two-steps.yaml"))
    rest = _config(folder / "half", pretrained, training=training, **sections)
    if ranks == 1:
        for config in (whole, half, rest):
            Trainer(load_config(TrainConfig, config)).train()
    else:
        train_on_ranks(ranks, [whole, half])
        train_on_ranks(ranks, [rest])
    return folder


def test_resumed_is_bit_equal(stopped: Path) -> None:
    assert read_steps(stopped / "whole") == read_steps(stopped / "half")
    _assert_equal(_load(stopped / "whole"), _load(stopped / "half"))


def test_a_checkpoint_exports_what_the_run_exported(stopped: Path, tmp_path: Path) -> None:
    run = stopped / "whole" / "run"
    checkpoint = run / "checkpoints" / "step-00000004"
    for option in ("--ema", "--dtype=fp32"):
        assert cli.main(["export", str(checkpoint), "-o", str(tmp_path / option), option]) == 0
    averaged, last = (
        load_file(tmp_path / option / "diffusion_pytorch_model.safetensors") for option in ("--ema", "--dtype=fp32")
    )
    _assert_equal(averaged, load_file(run / "export" / "diffusion_pytorch_model.safetensors"))
    _assert_equal(
        load_file(tmp_path / "--ema" / "lora" / "pytorch_lora_weights.safetensors"),
        load_file(run / "export" / "lora" / "pytorch_lora_weights.safetensors"),
    )
    name = "transformer_blocks.1.attn.to_q.weight"
    assert not torch.equal(averaged[name], last[name])


def _output(model: SD3Transformer2DModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 3, 16, 16, generator=generator)
    condition = torch.randn(2, model.config.in_channels - 3, 16, 16, generator=generator)
    with torch.no_grad():
        output: torch.Tensor = model(**model_inputs(model, sample, condition, torch.tensor([10.0, 500.0]))).sample
    return output


def test_the_merged_model_computes_what_plain_diffusers_computes_with_the_adapter(stopped: Path) -> None:
    config = load_config(TrainConfig, stopped / "whole" / "config.yaml")
    export = stopped / "whole" / "run" / "export"
    base = SD3Transformer2DModel.from_pretrained(str(config.model.pretrained))
    others = load_file(export / "lora" / "other_weights.safetensors")
    assert others.keys() == {"pos_embed.proj.weight", "pos_embed.proj.bias"}
    before = _output(base)
    base.load_state_dict(others, strict=False)
    base.load_lora_adapter(export / "lora", use_safetensors=True)
    merged = _output(SD3Transformer2DModel.from_pretrained(export))
    assert (merged - _output(base)).abs().max() < 1e-5
    assert (merged - before).abs().max() > 1e-3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    Trainer(load_config(TrainConfig, _config(folder, pretrained, training={"max_steps": 1}))).train()
    return folder


def test_a_merged_export_has_no_adapters_and_is_a_base_for_others(finished: Path, tmp_path: Path) -> None:
    export = finished / "run" / "export"
    assert not (export / "lora").exists()
    model = build_model(load_config(TrainConfig, _config(tmp_path, export)).model, seed=0)
    assert (_output(model) - _output(SD3Transformer2DModel.from_pretrained(export))).abs().max() < 1e-6


def test_what_is_exported_may_change_and_has_the_precision_of_the_export(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    overrides = ["model.lora.export=adapter", "training.export_dtype=fp16", f"output_dir={tmp_path / 'copy' / 'run'}"]
    Trainer(load_config(TrainConfig, finished / "config.yaml", overrides)).train()
    files = sorted((tmp_path / "copy" / "run" / "export").rglob("*.safetensors"))
    assert [file.name for file in files] == [
        "diffusion_pytorch_model.safetensors",
        "other_weights.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    for file in files:
        assert {value.dtype for value in load_file(file).values()} == {torch.float16}, file


@pytest.mark.parametrize(
    ("override", "named"),
    [("model.lora.rank=8", r"model\.lora\.rank 4 \(now 8\)"), ("model.lora=null", r"other settings: model\.lora")],
)
def test_a_run_does_not_go_on_with_other_adapters(finished: Path, override: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Trainer(load_config(TrainConfig, finished / "config.yaml", [override]))


@pytest.mark.parametrize(
    ("lora", "named"),
    [
        (
            {"target_modules": "to_queries"},
            r"model\.lora\.target_modules: 'to_queries' matches none of the model's 61 ",
        ),
        ({"train_also": "norm_in.*"}, r"model\.lora\.train_also: 'norm_in\.\*' matches none of the model's"),
        (
            {"target_modules": "pos_embed.proj", "train_also": "control"},
            r"model\.lora\.train_also: pos_embed\.proj\.bias is of a layer that has an adapter",
        ),
    ],
)
def test_names_that_match_nothing_or_twice(tmp_path: Path, lora: dict[str, Any], named: str) -> None:
    sections = {**TINY, "output_dir": str(tmp_path / "run"), "model": {**TINY["model"], "lora": lora}}
    with pytest.raises(UserError, match=named):
        Trainer(build_config(TrainConfig, sections, source="test"))
    assert not (tmp_path / "run").exists()
