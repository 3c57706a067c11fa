"""Runs with other alignment losses than FRAMER's: one override each, resumed, exported, planned, on every engine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import REPOSITORY, TINY, read_steps, tiny_config, train_on_ranks
from transformers import Dinov2Config, Dinov2Model

from framer.analysis.history import read_metrics
from framer.config.loading import build_config, load_config
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.planning.activations import trace_micro_step
from framer.training.checks import check_sizes
from framer.training.export_checkpoint import export_checkpoint
from framer.training.manifest import hash_file, read_manifest, write_manifest
from framer.training.trainer import Trainer

METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "l2": {"framer": {"method": "l2"}},
    "layersync": {"framer": {"method": "layersync"}},
    "sra": {"framer": {"method": "sra"}, "training": {"ema": {"decay": 0.9}}},
    "repa": {"framer": {"method": "repa"}},
    "dispersive": {"framer": {"method": "dispersive"}},
}
WITH_STATE = ("sra", "repa")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "dino"
    torch.manual_seed(5)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return folder


def sections(method: str, encoder: Path, **more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    of_method: dict[str, dict[str, Any]] = {key: dict(value) for key, value in METHODS[method].items()}
    if method == "repa":
        of_method["framer"]["repa"] = {"encoder": str(encoder)}
    return {key: {**of_method.get(key, {}), **more.get(key, {})} for key in of_method.keys() | more.keys()}


def config_of(folder: Path, method: str, encoder: Path, **more: dict[str, Any]) -> TrainConfig:
    of_method = sections(method, encoder, **more)
    content = {key: {**TINY.get(key, {}), **value} for key, value in of_method.items()}
    return build_config(TrainConfig, {**TINY, **content, "output_dir": str(folder / "run")}, source="test")


@pytest.mark.parametrize(
    "overrides",
    [
        ["framer.method=l2"],
        ["framer.method=layersync"],
        ["framer.method=sra", "training.ema.decay=0.9"],
        ["framer.repa.encoder=ENCODER"],
        ["framer.method=dispersive"],
    ],
    ids=list(METHODS),
)
def test_trains_on_the_quickstart_by_an_override(
    tmp_path: Path, encoder: Path, overrides: list[str], request: pytest.FixtureRequest
) -> None:
    method = request.node.callspec.id
    smaller = ["data.crop_size=32", "data.workers=0", "training.batch_size=2", "training.max_steps=2"]
    smaller += ["lr_scheduler.warmup_steps=0", "evaluation.crop_size=64", "evaluation.crops_per_photo=1"]
    given = [override.replace("ENCODER", str(encoder)) for override in overrides]
    run = tmp_path / "run"
    config = load_config(TrainConfig, REPOSITORY / "configs/quickstart.yaml", [*given, *smaller, f"output_dir={run}"])
    Trainer(config).train()

    first, second = read_metrics(run / "metrics.jsonl")
    students = 7 if method == "l2" else 1
    for record in (first, second):
        assert record.layers is None
        assert record.alignment is not None
        assert record.alignment.method == method
        assert len(record.alignment.names) == len(record.alignment.loss) == students
        assert record.framer_loss == pytest.approx(0.02 * sum(record.alignment.loss), rel=1e-5)
        assert record.loss == pytest.approx(record.noise_loss + record.framer_loss, rel=1e-5)
    assert first.alignment != second.alignment

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    name = f"{method}_loss/{first.alignment.names[0]}"
    assert [scalar.value for scalar in events.Scalars(name)] == pytest.approx(
        [first.alignment.loss[0], second.alignment.loss[0]]
    )
    report = (run / "report.md").read_text()
    assert f"# run: {method}, 2 steps" in report
    assert f"loss = noise loss + {method} loss" in report
    assert "modulation.png" not in report
    model = SD3Transformer2DModel.from_pretrained(run / "export", local_files_only=True)
    assert not any("framer" in name for name in model.state_dict())
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters" in report


@pytest.mark.parametrize("method", WITH_STATE)
def test_projectors_train_and_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path, encoder: Path, method: str) -> None:
    whole = Trainer(config_of(tmp_path / "whole", method, encoder))
    before = {name: p.detach().clone() for name, p in whole.model.framer_heads.named_parameters()}
    whole.train()
    assert all(not torch.equal(p, before[name]) for name, p in whole.model.framer_heads.named_parameters())
    Trainer(config_of(tmp_path / "resumed", method, encoder, training={"max_steps": 3})).train()
    resumed = Trainer(config_of(tmp_path / "resumed", method, encoder))
    resumed.train()
    assert read_steps(tmp_path / "whole") == read_steps(tmp_path / "resumed")
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name


@pytest.mark.parametrize("method", WITH_STATE)
def test_a_checkpoint_is_exported_without_projectors(tmp_path: Path, encoder: Path, method: str) -> None:
    trainer = Trainer(config_of(tmp_path, method, encoder, training={"max_steps": 2}))
    trainer.train()
    exported = load_file(tmp_path / "run/export/diffusion_pytorch_model.safetensors")
    export_checkpoint(tmp_path / "run/checkpoints/step-00000002", tmp_path / "out", ema=method == "sra")
    of_checkpoint = load_file(tmp_path / "out/diffusion_pytorch_model.safetensors")
    assert exported.keys() == of_checkpoint.keys()
    assert all(torch.equal(exported[name], of_checkpoint[name]) for name in exported)
    assert not any(name.startswith("framer") for name in exported)


@pytest.mark.parametrize(("method", "gap"), [("framer", None), ("sra", 0.5), ("sra", 0.0)])
def test_the_average_teaches_from_its_own_weights_at_its_own_noise(
    tmp_path: Path, encoder: Path, method: str, gap: float | None
) -> None:
    framer = {"method": method, "teacher": "ema", **({} if gap is None else {"sra": {"noise_gap": gap}})}
    more = {"framer": framer, "training": {"ema": {"decay": 0.5, "warmup": False}}}
    trainer = Trainer(config_of(tmp_path, "l2", encoder, **more))
    trainer.rehearse(3)
    seen: list[tuple[bool, torch.Tensor, torch.Tensor]] = []

    def watch(model: torch.nn.Module, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        seen.append((torch.is_grad_enabled(), model.proj_out.weight.detach().clone(), kwargs["timestep"]))

    handle = trainer.model.register_forward_pre_hook(watch, with_kwargs=True)
    live = trainer.model.proj_out.weight.detach().clone()
    batch = next(trainer._batches(1))
    trainer.forward.losses(trainer.engine, batch)
    handle.remove()
    (taught, average, lower), (learns, weights, timesteps) = seen
    assert (taught, learns) == (False, True)
    assert torch.equal(weights, live)
    assert torch.equal(average, trainer.ema.state_dict()["average.proj_out.weight"])
    assert not torch.equal(average, live)
    assert trainer.model.training
    if gap:
        assert bool((lower < timesteps).all())
        assert bool((lower >= timesteps - 1000 * gap - 1e-3).all())
    else:
        assert torch.equal(lower, timesteps)


def test_another_method_is_another_run(tmp_path: Path, encoder: Path) -> None:
    Trainer(config_of(tmp_path, "l2", encoder, training={"max_steps": 1})).train()
    with pytest.raises(UserError, match=r"framer.method l2 \(now dispersive\)"):
        Trainer(config_of(tmp_path, "dispersive", encoder, training={"max_steps": 2}))


def test_a_run_from_before_there_were_methods_goes_on(tmp_path: Path) -> None:
    config = build_config(TrainConfig, {**TINY, "output_dir": str(tmp_path / "run")}, source="test")
    Trainer(config.model_copy(update={"training": config.training.model_copy(update={"max_steps": 2})})).train()
    state = tmp_path / "run/checkpoints/step-00000002/trainer_state.json"
    content = json.loads(state.read_text())
    for younger in ("method", "sra", "repa", "dispersive"):
        del content["config"]["framer"][younger]
    state.write_text(json.dumps(content))
    write_manifest(state.parent, read_manifest(state.parent) | {state.name: hash_file(state)})
    Trainer(config).train()
    assert [step["step"] for step in read_steps(tmp_path)] == [1, 2, 3, 4]


def test_only_framers_bands_need_a_grid_of_several_tokens(encoder: Path, tmp_path: Path) -> None:
    model = SimpleNamespace(config=SimpleNamespace(patch_size=32, pos_embed_max_size=4))
    check_sizes(model, config_of(tmp_path, "layersync", encoder))
    with pytest.raises(UserError, match=r"framer.cutoff 0.25 with data.crop_size 32"):
        check_sizes(model, build_config(TrainConfig, {**TINY, "output_dir": "x"}, source="test"))


def test_a_missing_encoder_is_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"framer.repa.encoder: .*nowhere/config.json not found"):
        Trainer(config_of(tmp_path, "repa", tmp_path / "nowhere"))


@pytest.mark.parametrize("method", list(METHODS))
def test_a_plan_counts_projectors_and_the_encoder(tmp_path: Path, encoder: Path, method: str) -> None:
    config = config_of(tmp_path, method, encoder)
    step = trace_micro_step(config)
    off = config.framer.model_copy(update={"enabled": False})
    without = trace_micro_step(config.model_copy(update={"framer": off}))
    heads = [p for p in step.parameters if p.name.startswith("framer_heads")]
    assert all(p.trained for p in heads)
    assert (sum(p.numel for p in heads) > 0) == (method in WITH_STATE)
    assert step.parameters[: len(without.parameters)] == without.parameters
    frozen = Dinov2Model.from_pretrained(encoder)
    added = step.buffer_bytes - without.buffer_bytes
    assert added == (sum(p.nbytes for p in frozen.parameters()) + 24 if method == "repa" else 0)
    assert step.flops.backward > 0


ENGINES: dict[str, dict[str, Any]] = {
    "checkpointing": {"training": {"activation_checkpointing": True}},
    "zero2": {"deepspeed": {"zero_stage": 2}},
    "zero3": {"deepspeed": {"zero_stage": 3}},
    "bf16-zero2": {"training": {"precision": "bf16"}, "deepspeed": {"zero_stage": 2}},
    "bf16-zero3": {"training": {"precision": "bf16"}, "deepspeed": {"zero_stage": 3}},
}
TWO_RANKS: dict[str, dict[str, Any]] = {
    "two-zero0": {"training": {"batch_size": 2}},
    "two-zero2": {"training": {"batch_size": 2}, "deepspeed": {"zero_stage": 2}},
    "two-zero3": {"training": {"batch_size": 2}, "deepspeed": {"zero_stage": 3}},
}
COMPARED = ("sra", "repa", "dispersive")


@pytest.fixture(scope="module")
def on_engines(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("engines")

    def write(method: str, engine: str, changes: dict[str, Any]) -> Path:
        changed = {**changes, "training": {"max_steps": 3, **changes.get("training", {})}, "optimizer": {"lr": 1e-2}}
        return tiny_config(folder / f"{method}-{engine}", **sections(method, encoder, **changed))

    # Stage 3 last: it replaces torch's linear function for good.
    train_on_ranks(1, [write(m, e, c) for e, c in {"plain": {}, **ENGINES}.items() for m in COMPARED])
    train_on_ranks(2, [write(m, e, c) for e, c in TWO_RANKS.items() for m in COMPARED])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*ENGINES, *TWO_RANKS])
@pytest.mark.parametrize("method", COMPARED)
def test_every_engine_computes_the_same(on_engines: Path, method: str, engine: str) -> None:
    rel, absolute = (5e-3, 2e-3) if engine.startswith("bf16") else (1e-4, 1e-6)
    steps, expected = (read_steps(on_engines / f"{method}-{name}") for name in (engine, "plain"))
    for key in ("loss", "framer_loss"):
        assert [s[key] for s in steps] == pytest.approx([s[key] for s in expected], rel=rel, abs=absolute)
    assert [s["alignment"]["loss"] for s in steps] == [
        pytest.approx(s["alignment"]["loss"], rel=rel, abs=absolute) for s in expected
    ]
