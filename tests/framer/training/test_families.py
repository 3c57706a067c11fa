"""Every family of models through the trainer: trained, resumed, exported without a trace of FRAMER, and restoring."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import diffusers
import family_folders
import pytest
import torch
from safetensors.torch import load_file
from training_runs import read_steps, tiny_config

from framer import cli
from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.data.images import read_image
from framer.data.photographs import bundled_photographs
from framer.errors import UserError
from framer.inference.load import load_restorer
from framer.objectives import OneStep
from framer.planning.activations import trace_micro_step
from framer.training.command import main

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Family:
    """A tiny family: where its parts lie, and the sections of its configuration."""

    def __init__(self, folder: Path, name: str) -> None:
        vae = str(family_folders.autoencoder(folder / "vae"))
        model: dict[str, Any] = {"latents": "vae", "vae": vae}
        self.sections: dict[str, Any] = {"model": model, "objective": {"type": "diffusion"}}
        self.class_name = "UNet2DConditionModel"
        self.students = 9
        if name == "framer_d":
            model["pretrained"] = str(family_folders.sd35(folder / "sd35"))
            model |= {"conditioning": "control_stream", "trainable": ["control"], "text_tokens": 3}
            self.sections["objective"] = {"type": "flow_matching", "target": "x0"}
            self.class_name, self.students = "SD3ControlStreamTransformer2DModel", 3
        elif name == "sdxl":
            model["pretrained"] = str(family_folders.sdxl(folder / "sdxl"))
            texts = family_folders.texts(folder / "text.safetensors", prompt=16, pooled=8)
            model["text_embeddings"] = str(texts)
            self.sections["objective"]["prediction_type"] = "epsilon"
            self.students = 7
        else:
            model["pretrained"] = str(family_folders.sd21(folder / "sd21"))
            model["text_embeddings"] = str(family_folders.texts(folder / "text.safetensors", prompt=16))
        if name == "sd21 v":
            self.sections["objective"] |= {"prediction_type": "v_prediction", "zero_terminal_snr": True}
        if name.startswith("framer_u"):
            model |= {"conditioning": "none", "lora": {"rank": 2, "export": "adapter"}}
            self.sections["objective"] = {"type": "one_step"}
        if name == "framer_u score":
            negative = family_folders.texts(folder / "negative.safetensors", prompt=16, seed=1)
            model["negative_text_embeddings"] = str(negative)
            self.sections["objective"] |= {"csd_weight": 1.0, "csd_base": model["pretrained"]}

    def config(self, folder: Path, **sections: Any) -> Path:
        return tiny_config(folder, **{**self.sections, **sections})


FAST = ["sd21", "framer_d", "framer_u score"]
SLOW = ["sd21 v", "sdxl", "framer_u"]
FAMILIES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path]:
    """A family, and the folder of its run of four steps."""
    folder = tmp_path_factory.mktemp("family")
    family = Family(folder, request.param)
    assert main(["--config", str(family.config(folder))]) == 0
    return family, folder


def test_every_stage_learns_from_the_last_map(trained: tuple[Family, Path]) -> None:
    family, folder = trained
    steps = read_steps(folder)
    assert len(steps) == 4
    for step in steps:
        assert step["framer_loss"] > 0
        assert len(step["layers"]["names"]) == family.students
    assert len({step["loss"] for step in steps}) == 4


def test_the_export_has_no_trace_of_framer_and_loads_in_plain_diffusers(trained: tuple[Family, Path]) -> None:
    family, folder = trained
    export = folder / "run/export"
    names = load_file(export / WEIGHTS).keys()
    assert not [name for name in names if "framer" in name or "lora" in name]
    assert json.loads((export / "config.json").read_text())["_class_name"] == family.class_name
    if family.class_name == "UNet2DConditionModel":
        model, loaded = diffusers.UNet2DConditionModel.from_pretrained(
            export, local_files_only=True, output_loading_info=True
        )
        assert not loaded["missing_keys"]
        assert not loaded["unexpected_keys"]
        assert model.config.in_channels == (4 if family.sections["model"].get("conditioning") == "none" else 8)


def test_only_what_should_has_trained(trained: tuple[Family, Path]) -> None:
    family, folder = trained
    before = load_file(Path(family.sections["model"]["pretrained"]) / WEIGHTS)
    after = load_file(folder / "run/export" / WEIGHTS)
    changed = {
        name for name, value in before.items() if value.shape != after[name].shape or (value != after[name]).any()
    }
    if family.sections["model"].get("trainable") == ["control"]:
        assert not changed
        assert any(after[name].any() for name in after if "control_attn.to_q" in name)
    elif "lora" in family.sections["model"]:
        assert changed
        assert all(".attn" in name for name in changed)
    else:
        assert "conv_in.weight" in changed
        assert len(changed) > 0.9 * len(before)


def test_it_resumes_bit_for_bit(trained: tuple[Family, Path], tmp_path: Path) -> None:
    family, _ = trained
    for steps in (2, 4):
        training = {"max_steps": steps, "batch_size": 4, "checkpoint_steps": 2}
        # The learning rate depends on max_steps; the checkpoint is of the same run otherwise.
        config = family.config(tmp_path, training=training, lr_scheduler={"type": "constant"})
        assert main(["--config", str(config)]) == 0
    whole = family.config(tmp_path / "whole", lr_scheduler={"type": "constant"})
    assert main(["--config", str(whole)]) == 0
    assert read_steps(tmp_path) == read_steps(tmp_path / "whole")
    resumed, once = (load_file(f / "run/export" / WEIGHTS) for f in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(value, once[name]) for name, value in resumed.items())


def test_the_export_restores_a_held_out_photograph_of_any_size(trained: tuple[Family, Path]) -> None:
    _, folder = trained
    restorer = load_restorer(folder / "run/export")
    assert restorer.num_inference_steps == 1  # as evaluated
    if not isinstance(restorer.objective, OneStep):
        restorer = load_restorer(folder / "run/export", num_inference_steps=2)
    photograph = read_image(bundled_photographs("heldout")[0])
    upsampled = torch.from_numpy(photograph[:96, :64]).permute(2, 0, 1)[None].float() / 127.5 - 1
    restored = restorer(upsampled, seed=0)
    assert restored.shape == upsampled.shape
    assert restored.isfinite().all()
    assert restored.std() > 0
    assert torch.equal(restored, restorer(upsampled, seed=0))


def test_it_can_be_planned(trained: tuple[Family, Path]) -> None:
    family, folder = trained
    step = trace_micro_step(load_config(TrainConfig, family.config(folder / "plan")))
    assert step.moments
    names = {parameter.name for parameter in step.parameters if parameter.trained}
    assert any(name.startswith("framer_heads") for name in names) is (family.class_name == "UNet2DConditionModel")


def test_it_can_be_rehearsed(trained: tuple[Family, Path], capsys: pytest.CaptureFixture[str]) -> None:
    family, folder = trained
    assert main(["--config", str(family.config(folder / "dry")), "--dry-run"]) == 0
    said = capsys.readouterr().out
    # Crops of 32 pixels are latents of 16, which SD3 cuts into patches of 2.
    assert ("64 a crop (8 x 8)" if family.class_name.startswith("SD3") else "256 a crop (16 x 16)") in said
    assert not (folder / "dry/run").exists()


def test_a_damaged_export_is_named(trained: tuple[Family, Path], tmp_path: Path) -> None:
    _, folder = trained
    with pytest.raises(UserError, match=r"restoration.json not found; expected the folder that a run exported"):
        load_restorer(tmp_path)
    (tmp_path / "restoration.json").write_text(json.dumps({"latents": "vae"}))
    with pytest.raises(UserError, match=r"restoration.json is damaged"):
        load_restorer(tmp_path)
    with pytest.raises(UserError, match="num_inference_steps: expected 1 or more, got 0"):
        load_restorer(folder / "run/export", num_inference_steps=0)
    with pytest.raises(UserError, match=r"model.vae: .*config.json not found"):
        load_restorer(folder / "run/export", vae=str(tmp_path / "vae"))


@pytest.mark.parametrize("name", ["framer_d", "framer_u"])
def test_half_precision_does_not_round_what_is_frozen(name: str, tmp_path: Path) -> None:
    family = Family(tmp_path, name)
    training = {"precision": "bf16", "max_steps": 1, "batch_size": 2, "checkpoint_steps": 1}
    config = family.config(tmp_path, training=training, deepspeed={"zero_stage": 2})
    assert main(["--config", str(config)]) == 0
    exports = [tmp_path / "run/export", tmp_path / "again"]
    assert cli.main(["export", str(tmp_path / "run/checkpoints/step-00000001"), "-o", str(exports[1])]) == 0
    pretrained = load_file(Path(family.sections["model"]["pretrained"]) / WEIGHTS)
    for export in exports:
        weights = load_file(export / WEIGHTS)
        for key, value in pretrained.items():
            if ".attn" not in key or name == "framer_d":
                assert torch.equal(weights[key], value), key


@pytest.mark.parametrize(
    "framer",
    [
        {"method": "layersync"},
        {"method": "l2", "students": [3]},
        pytest.param({"teacher": "ema", "students": [0, 3, 9]}, marks=pytest.mark.slow),
        pytest.param({"method": "dispersive"}, marks=pytest.mark.slow),
        pytest.param({"students": 3, "teacher": 8}, marks=pytest.mark.slow),
        pytest.param({"enabled": False}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_choices_of_layers_end_with_a_report(framer: dict[str, Any], tmp_path: Path) -> None:
    family = Family(tmp_path, "sd21")
    training = {"max_steps": 1, "batch_size": 2, "checkpoint_steps": 1}
    assert main(["--config", str(family.config(tmp_path, framer=framer, training=training))]) == 0
    assert (tmp_path / "run/report.md").is_file()


def _mistake(family: Family, folder: Path, capsys: pytest.CaptureFixture[str], **sections: Any) -> str:
    assert main(["--config", str(family.config(folder, **sections))]) == 2
    return capsys.readouterr().err


def test_new_inputs_must_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = Family(tmp_path, "sd21")
    family.sections["model"]["trainable"] = ["attention"]
    error = _mistake(family, tmp_path, capsys)
    assert "model.trainable: " in error
    assert "has no inputs for the low-resolution image" in error
    assert "add control to model.trainable" in error


def test_unets_are_not_compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = Family(tmp_path, "sd21")
    family.sections["model"]["compile_blocks"] = True
    assert "model.compile_blocks with a UNet2DConditionModel" in _mistake(family, tmp_path, capsys)


@pytest.mark.parametrize(
    ("key", "value"),
    [("cross_attention_dim", [16, 16, 16, 16]), ("num_class_embeds", 10), ("class_embed_type", "timestep")],
)
def test_unets_that_need_more_are_refused(
    key: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = Family(tmp_path, "sd21")
    path = Path(family.sections["model"]["pretrained"]) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    error = _mistake(family, tmp_path, capsys)
    assert "model.pretrained: " in error
    assert "Traceback" not in error


def test_weights_that_are_not_finite_end_the_run_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = Family(tmp_path, "framer_u")
    training = {"max_steps": 2, "batch_size": 2, "checkpoint_steps": 2}
    error = _mistake(family, tmp_path, capsys, optimizer={"lr": 1e30}, training=training)
    assert "finite" in error.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["framer_d", "framer_u score"])
def test_200_steps_on_the_photographs(name: str, tmp_path: Path) -> None:
    family = Family(tmp_path, name)
    if name == "framer_u score":
        # Its value is the size of a gradient, which need not fall, least of all a random base's; the rest should.
        family.sections["objective"]["csd_weight"] = 0.1
    for steps in (100, 200):
        training = {"max_steps": steps, "batch_size": 4, "checkpoint_steps": 50}
        config = family.config(tmp_path, training=training, lr_scheduler={"type": "constant"}, optimizer={"lr": 2e-3})
        assert main(["--config", str(config)]) == 0
    losses = [step["noise_loss"] for step in read_steps(tmp_path)]
    assert len(losses) == 200
    assert fmean(losses[-40:]) < fmean(losses[:40])
    restorer = load_restorer(tmp_path / "run/export")
    if not isinstance(restorer.objective, OneStep):
        restorer = load_restorer(tmp_path / "run/export", num_inference_steps=4)
    upsampled = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert restorer(upsampled, seed=0).isfinite().all()
