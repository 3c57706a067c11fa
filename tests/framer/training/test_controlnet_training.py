"""A ControlNet through the trainer: trained, resumed, exported as diffusers' own, and restoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import family_folders
import pytest
import torch
from safetensors.torch import load_file
from training_runs import read_steps, tiny_config

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.data.images import read_image
from framer.data.photographs import bundled_photographs
from framer.errors import ConfigError, UserError
from framer.inference.load import load_restorer
from framer.planning.activations import trace_micro_step
from framer.training.command import main
from framer.training.export_checkpoint import export_checkpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONSTANT = {"type": "constant"}


class Family:
    """A tiny frozen model: where it lies, and the sections of its configuration."""

    def __init__(self, folder: Path, name: str) -> None:
        vae = str(family_folders.autoencoder(folder / "vae"))
        pretrained = getattr(family_folders, name)(folder / name)
        model = {"latents": "vae", "vae": vae, "pretrained": str(pretrained), "text_tokens": 2}
        objective: dict[str, Any] = {"type": "diffusion", "prediction_type": "epsilon"}
        if name == "sd35":
            objective = {"type": "flow_matching", "target": "x0"}
        self.base = pretrained
        self.loader = diffusers.SD3ControlNetModel if name == "sd35" else diffusers.ControlNetModel
        self.sections = {
            "model": {**model, "conditioning": "controlnet", "trainable": ["control"]},
            "objective": objective,
        }

    def config(self, folder: Path, **sections: Any) -> Path:
        model = {**self.sections["model"], **sections.pop("model", {})}
        return tiny_config(folder, **{**self.sections, "model": model, **sections})


FAMILIES = ["sd35", "sd21", pytest.param("sdxl", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path]:
    """A family, and the folder of its run of four steps with an average of the weights."""
    folder = tmp_path_factory.mktemp("controlnet")
    family = Family(folder, request.param)
    training = {"max_steps": 4, "batch_size": 4, "checkpoint_steps": 2, "ema": {"decay": 0.9}}
    assert main(["--config", str(family.config(folder, training=training, lr_scheduler=CONSTANT))]) == 0
    return family, folder


def test_the_controlnet_alone_trains_and_framer_sees_the_frozen_model(trained: tuple[Family, Path]) -> None:
    family, folder = trained
    steps = read_steps(folder)
    assert len({step["loss"] for step in steps}) == len(steps) == 4
    for step in steps:
        assert step["framer_loss"] > 0
        assert not any("controlnet" in name for name in step["layers"]["names"])
    checkpoint = folder / "run/checkpoints/step-00000004/mp_rank_00_model_states.pt"
    weights = torch.load(checkpoint, weights_only=False)["module"]
    for name, value in load_file(family.base / WEIGHTS).items():
        assert torch.equal(weights[f"module.{name}"], value), name


def test_the_export_is_a_controlnet_of_diffusers(trained: tuple[Family, Path]) -> None:
    family, folder = trained
    controlnet, loaded = family.loader.from_pretrained(
        folder / "run/export", local_files_only=True, output_loading_info=True
    )
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    zero = [parameter for name, parameter in controlnet.named_parameters() if name.startswith("controlnet_")]
    assert all(parameter.any() for parameter in zero)
    settings = json.loads((folder / "run/export/restoration.json").read_text())
    assert settings["pretrained"] == str(family.base)


def test_it_restores_a_photograph_of_any_size(trained: tuple[Family, Path], tmp_path: Path) -> None:
    family, folder = trained
    restorer = load_restorer(folder / "run/export", num_inference_steps=2)
    photograph = read_image(bundled_photographs("heldout")[0])
    upsampled = torch.from_numpy(photograph[:96, :64]).permute(2, 0, 1)[None].float() / 127.5 - 1
    restored = restorer(upsampled, seed=0)
    assert restored.shape == upsampled.shape
    assert restored.std() > 0
    assert torch.equal(restored, restorer(upsampled, seed=0))
    # What it restores depends on the image; the noise is the same.
    assert not torch.equal(restored, restorer(upsampled.flip(-1), seed=0))
    family.base.rename(tmp_path / "moved")
    try:
        with pytest.raises(UserError, match=r"config.json not found"):
            load_restorer(folder / "run/export")
        moved = load_restorer(folder / "run/export", num_inference_steps=2, pretrained=str(tmp_path / "moved"))
        assert torch.equal(restored, moved(upsampled, seed=0))
    finally:
        (tmp_path / "moved").rename(family.base)


@pytest.mark.slow
def test_it_resumes_bit_for_bit_and_a_checkpoint_exports_the_same(trained: tuple[Family, Path], tmp_path: Path) -> None:
    family, folder = trained
    for steps in (2, 4):
        training = {"max_steps": steps, "batch_size": 4, "checkpoint_steps": 2, "ema": {"decay": 0.9}}
        assert main(["--config", str(family.config(tmp_path, training=training, lr_scheduler=CONSTANT))]) == 0
    assert read_steps(tmp_path) == read_steps(folder)
    export_checkpoint(tmp_path / "run/checkpoints/step-00000004", tmp_path / "exported", ema=True)
    once = load_file(folder / "run/export" / WEIGHTS)
    for again in (tmp_path / "run/export", tmp_path / "exported"):
        weights = load_file(again / WEIGHTS)
        assert weights.keys() == once.keys()
        assert all(torch.equal(value, weights[name]) for name, value in once.items())
        assert {file.name for file in again.iterdir()} == {"config.json", "restoration.json", WEIGHTS}


def test_it_can_be_planned(trained: tuple[Family, Path]) -> None:
    family, folder = trained
    step = trace_micro_step(load_config(TrainConfig, family.config(folder / "plan")))
    names = {parameter.name for parameter in step.parameters if parameter.trained}
    assert any(name.startswith("controlnet.") for name in names)
    assert all(name.startswith("controlnet.") or "framer_heads" in name for name in names)
    assert any("framer_heads" in name for name in names) is (family.loader is diffusers.ControlNetModel)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_engines_train_the_same(trained: tuple[Family, Path], stage: int, tmp_path: Path) -> None:
    family, folder = trained
    training = {"max_steps": 4, "batch_size": 4, "checkpoint_steps": 4, "ema": {"decay": 0.9}}
    config = family.config(tmp_path, training=training, lr_scheduler=CONSTANT, deepspeed={"zero_stage": stage})
    assert main(["--config", str(config)]) == 0
    for step, plain in zip(read_steps(tmp_path), read_steps(folder), strict=True):
        assert step["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    weights, once = (load_file(f / "run/export" / WEIGHTS) for f in (tmp_path, folder))
    assert weights.keys() == once.keys()
    for name, value in once.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["new", "from a folder"])
def test_what_stays_frozen_in_half_precision_is_exported_exactly(start: str, tmp_path: Path) -> None:
    family = Family(tmp_path, "sd35")
    sources = load_file(family.base / WEIGHTS)
    model: dict[str, Any] = {"trainable": ["controlnet.controlnet_blocks.*"]}
    if start == "from a folder":
        base = diffusers.SD3Transformer2DModel.from_pretrained(family.base, local_files_only=True)
        shared = {name: value for name, value in base.config.items() if name not in ("num_layers", "_class_name")}
        controlnet = diffusers.SD3ControlNetModel(**shared, num_layers=2, force_zeros_for_pooled_projection=False)
        controlnet.save_pretrained(tmp_path / "own")
        model["controlnet"] = str(tmp_path / "own")
        sources = load_file(tmp_path / "own" / WEIGHTS)
    config = family.config(
        tmp_path,
        model=model,
        training={"max_steps": 1, "batch_size": 2, "checkpoint_steps": 1, "precision": "bf16"},
        deepspeed={"zero_stage": 2},
    )
    assert main(["--config", str(config)]) == 0
    exported = load_file(tmp_path / "run/export" / WEIGHTS)
    kept = [n for n in exported if n in sources and not n.startswith(("controlnet_blocks.", "pos_embed_input."))]
    assert len(kept) > 50
    for name in kept:
        assert torch.equal(exported[name], sources[name]), name


@pytest.mark.slow
def test_training_goes_on_from_an_export(trained: tuple[Family, Path], tmp_path: Path) -> None:
    family, folder = trained
    config = family.config(
        tmp_path,
        model={"controlnet": str(folder / "run/export")},
        training={"max_steps": 1, "batch_size": 2, "checkpoint_steps": 1},
        optimizer={"lr": 1e-12},
    )
    assert main(["--config", str(config)]) == 0
    before, after = (load_file(f / "run/export" / WEIGHTS) for f in (folder, tmp_path))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-9)


def test_an_export_trained_under_other_settings_is_refused(
    trained: tuple[Family, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, folder = trained
    config = family.config(tmp_path, model={"controlnet": str(folder / "run/export"), "text_tokens": 3})
    assert main(["--config", str(config)]) != 0
    assert "model.text_tokens=3 (trained with 2)" in capsys.readouterr().err


def test_mistakes_are_named_before_anything_is_computed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = Family(tmp_path, "sd35")
    assert main(["--config", str(family.config(tmp_path, model={"trainable": "all"}))]) != 0
    assert "set model.trainable to control" in capsys.readouterr().err
    one_step = family.config(tmp_path, objective={"type": "one_step"})
    with pytest.raises(ConfigError, match=r"conditioning controlnet with objective.type one_step"):
        load_config(TrainConfig, one_step)
