from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DModel
from safetensors.torch import load_file, save_file
from sd3 import model_inputs
from torch import nn

from framer.config.architecture import SD3Architecture
from framer.config.model import ModelConfig
from framer.errors import UserError
from framer.models.build import build_model
from framer.models.weights import WEIGHTS_FILE

TINY: dict[str, object] = {
    "patch_size": 2,
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "joint_attention_dim": 6,
    "pooled_projection_dim": 5,
    "pos_embed_max_size": 8,
}


def config_of(architecture: dict[str, object] | None = None, **model: object) -> ModelConfig:
    settings = TINY | (architecture or {})
    return ModelConfig(architecture=SD3Architecture(**settings), **model)  # type: ignore[arg-type]


def build(seed: int = 0, architecture: dict[str, object] | None = None, **model: object) -> SD3Transformer2DModel:
    return build_model(config_of(architecture, **model), seed=seed)


def from_folder(folder: Path, seed: int = 0, **model: object) -> SD3Transformer2DModel:
    return build_model(ModelConfig(pretrained=str(folder), **model), seed=seed)  # type: ignore[arg-type]


def output_of(model: SD3Transformer2DModel, height: int = 8, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    sample, condition = (
        torch.randn(2, channels, height, width, generator=generator) for channels in (3, model.config.in_channels - 3)
    )
    with torch.no_grad():
        return model.eval()(**model_inputs(model, sample, condition, torch.tensor([300.0, 700.0]))).sample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trained model, as any diffusers script saves it: random weights everywhere, three input channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SD3Transformer2DModel(
            **{key: value for key, value in TINY.items() if key != "pos_embed_max_size"},
            sample_size=8,
            in_channels=3,
            out_channels=3,
            caption_projection_dim=16,
            pos_embed_max_size=8,
        )
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_model_is_what_the_configuration_says() -> None:
    model = build(architecture={"num_layers": 4, "dual_attention_layers": [0, 2], "qk_norm": None})
    assert len(model.transformer_blocks) == 4
    assert [block.use_dual_attention for block in model.transformer_blocks] == [True, False, True, False]
    assert model.transformer_blocks[0].attn.norm_q is None
    assert (model.config.in_channels, model.config.out_channels, model.config.patch_size) == (9, 3, 2)
    assert model.inner_dim == 16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("latents", ["pixel", "residual"])
@pytest.mark.parametrize("architecture", [{}, {"dual_attention_layers": [0, 1, 2]}, {"qk_norm": None}])
def test_a_new_model_predicts_zero(latents: str, architecture: dict[str, object]) -> None:
    output = output_of(build(architecture=architecture, latents=latents))
    assert output.shape == (2, 3, 8, 12)
    assert not output.any()


def test_a_new_model_can_learn() -> None:
    model = build()
    hidden = torch.randn(2, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = model_inputs(model, hidden[:, :3], hidden[:, 3:], torch.tensor([300.0, 700.0]))
    (model(**inputs).sample - 1).square().mean().backward()
    assert model.proj_out.weight.grad.abs().sum() > 0


def test_the_largest_grid_fits_and_grids_need_not_be_square() -> None:
    assert output_of(build(), height=16, width=6).shape == (2, 3, 16, 6)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(11)
    first = build(seed=3).state_dict()
    torch.manual_seed(12)
    second, other = build(seed=3).state_dict(), build(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    different = [name for name in first if not torch.equal(first[name], other[name])]
    assert "pos_embed.proj.weight" in different
    assert "transformer_blocks.1.attn.to_q.weight" in different


@pytest.mark.parametrize("pretrained", [False, True])
def test_building_leaves_the_global_random_state_alone(pretrained: bool, folder: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    if pretrained:
        from_folder(folder)
    else:
        build()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_saved_model_keeps_its_output_and_gains_zero_channels_for_the_condition(folder: Path) -> None:
    original = SD3Transformer2DModel.from_pretrained(folder, local_files_only=True).eval()
    model = from_folder(folder)
    assert (original.config.in_channels, model.config.in_channels) == (3, 9)
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(2, 3, 8, 12, generator=generator)
    with torch.no_grad():
        inputs = model_inputs(original, sample, sample[:, :0], torch.tensor([300.0, 700.0]))
        expected = original(**inputs).sample
    assert expected.abs().mean() > 0.01
    torch.testing.assert_close(output_of(model), expected, rtol=0, atol=1e-5)


def test_a_model_saved_with_its_condition_loads_as_it_is(folder: Path, tmp_path: Path) -> None:
    model = from_folder(folder)
    with torch.no_grad():
        model.pos_embed.proj.weight[:, 3:] = 0.3
    model.save_pretrained(tmp_path / "tuned")
    again = from_folder(tmp_path / "tuned")
    assert again.config.in_channels == 9
    assert torch.equal(output_of(again), output_of(model))


def test_weights_saved_in_half_precision_load_as_float32(folder: Path, tmp_path: Path) -> None:
    from_folder(folder).half().save_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in from_folder(tmp_path / "half").parameters()} == {torch.float32}


def test_the_architecture_is_read_only_for_new_models(folder: Path) -> None:
    model = build(architecture={"num_layers": 9}, pretrained=str(folder))
    assert len(model.transformer_blocks) == 3


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"model\.pretrained: .*nowhere/config\.json not found; expected 'base' or a fol"
    ):
        from_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS_FILE])
def test_a_folder_that_lacks_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"model.pretrained: {folder / name} not found"):
        from_folder(folder)


def test_a_truncated_weights_file(folder: Path) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"model.pretrained: cannot load {folder}: "):
        from_folder(folder)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"x"'])
def test_a_damaged_config(folder: Path, content: str) -> None:
    name = "config.json"
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=f"model.pretrained: {folder / name} is damaged: "):
        from_folder(folder)


@pytest.mark.parametrize(("class_name", "said"), [("UNet2DModel", "UNet2DModel"), (None, "no diffusers model")])
def test_a_folder_of_another_class(folder: Path, class_name: str | None, said: str) -> None:
    edit_config(folder, _class_name=class_name)
    with pytest.raises(UserError, match=f"model.pretrained: {folder} holds {said}; "):
        from_folder(folder)


def test_diffusers_names_its_class_as_we_read_it(tmp_path: Path) -> None:
    UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    ).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds UNet2DModel"):
        from_folder(tmp_path)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    del weights["transformer_blocks.1.attn.to_q.weight"]
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 missing weights, such as transformer_blocks\.1\.attn\.to_q\.weight"):
        from_folder(folder)


def test_weights_that_have_no_place_are_not_dropped(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    save_file(weights | {"control.weight": torch.zeros(2)}, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not fit config\.json: 1 unexpected weights, such as control\.weight"):
        from_folder(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    edit_config(folder, joint_attention_dim=7)
    with pytest.raises(UserError, match=f"model.pretrained: cannot load {folder}: .*"):
        from_folder(folder)


@pytest.mark.parametrize("latents", ["pixel", "residual"])
def test_a_model_with_other_channels(folder: Path, tmp_path: Path, latents: str) -> None:
    edit_config(folder, out_channels=4, in_channels=4)
    model = SD3Transformer2DModel.from_config(SD3Transformer2DModel.load_config(folder))
    model.save_pretrained(tmp_path / "four")
    with pytest.raises(UserError, match=f"the model predicts 4 channels; model.latents={latents} needs 3"):
        from_folder(tmp_path / "four", latents=latents)


@pytest.mark.parametrize("channels", [4, 6])
def test_a_model_with_other_input_channels(folder: Path, tmp_path: Path, channels: int) -> None:
    edit_config(folder, in_channels=channels)
    model = SD3Transformer2DModel.from_config(SD3Transformer2DModel.load_config(folder))
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=f"the model takes {channels} input channels; .* needs 3, or 9 with the low"):
        from_folder(tmp_path / "other")
