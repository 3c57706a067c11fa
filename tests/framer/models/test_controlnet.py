"""A ControlNet beside a frozen model: new and from a folder, whole and by module, and called as the trainer does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import family_folders
import pytest
import torch
from diffusers import ControlNetModel, SD3ControlNetModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from framer.config.engine import ActivationCheckpointingConfig
from framer.config.model import ModelConfig
from framer.errors import ConfigError, UserError
from framer.features import adapter_for
from framer.models.attention_backends import use_attention_backend
from framer.models.build import build_model, build_model_by_module, build_model_without_weights
from framer.models.controlled import ControlledModel
from framer.models.restoration_model import RestorationModel
from framer.models.trainable import freeze_the_rest, trainable_parameters
from framer.training.activation_checkpointing import enable_activation_checkpointing

CPU = torch.device("cpu")
KINDS = ["sd35", "sd21", "sdxl"]
TEXT = {"sd35": (8, 8), "sd21": (16, None), "sdxl": (16, 8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny families and their autoencoder."""
    folder = tmp_path_factory.mktemp("controlnet")
    for kind in KINDS:
        getattr(family_folders, kind)(folder / kind)
    family_folders.autoencoder(folder / "vae")
    return folder


def config_of(folder: Path, kind: str, **changes: Any) -> ModelConfig:
    settings = {"pretrained": str(folder / kind), "conditioning": "controlnet", "trainable": "control"}
    return ModelConfig.model_validate({**settings, "latents": "vae", "vae": str(folder / "vae"), **changes})


def built(config: ModelConfig, *, seed: int = 0) -> ControlledModel:
    model: nn.Module = build_model(config, seed=seed)
    assert isinstance(model, ControlledModel)
    return model


def scrambled(model: ControlledModel) -> ControlledModel:
    """Zeros are what hides a missing connection."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.controlnet.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def predict(model: nn.Module, config: ModelConfig, *, image_seed: int = 2) -> torch.Tensor:
    restoration = RestorationModel(model, config, CPU)  # type: ignore[arg-type]
    sample = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(1))
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(image_seed)) * 2 - 1
    with torch.no_grad():
        reference = restoration.latents.reference(image)
        return restoration.predict(sample, reference, torch.tensor([300.0, 700.0]))


def base_output(folder: Path, kind: str) -> torch.Tensor:
    sample = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(1))
    timesteps, (prompt, pooled) = torch.tensor([300.0, 700.0]), TEXT[kind]
    text = torch.zeros(2, 1, prompt)
    with torch.no_grad():
        if kind == "sd35":
            sd3 = SD3Transformer2DModel.from_pretrained(folder / kind, local_files_only=True)
            return sd3(sample, text, torch.zeros(2, 8), timesteps).sample
        unet = UNet2DConditionModel.from_pretrained(folder / kind, local_files_only=True)
        sizes = torch.tensor([32.0, 48, 0, 0, 32, 48]).expand(2, -1)
        added = None if pooled is None else {"text_embeds": torch.zeros(2, pooled), "time_ids": sizes}
        return unet(sample, timesteps, text, added_cond_kwargs=added).sample


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_controlnet_changes_nothing_and_a_trained_one_shows_the_image(folder: Path, kind: str) -> None:
    config = config_of(folder, kind)
    model = built(config)
    assert torch.equal(predict(model, config), base_output(folder, kind))
    scrambled(model)
    assert not torch.allclose(predict(model, config), base_output(folder, kind))
    assert not torch.allclose(predict(model, config), predict(model, config, image_seed=3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_controlnet_is_diffusers_own(folder: Path, kind: str) -> None:
    model = built(config_of(folder, kind))
    if kind == "sd35":
        base = SD3Transformer2DModel.from_pretrained(folder / kind, local_files_only=True)
        expected = SD3ControlNetModel.from_transformer(base, num_layers=2, num_extra_conditioning_channels=0)
    else:
        unet = UNet2DConditionModel.from_pretrained(folder / kind, local_files_only=True)
        expected = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    pipelines = "force_zeros_for_pooled_projection"
    config = {name: value for name, value in expected.config.items() if name[0] != "_" and name != pipelines}
    assert {name: model.controlnet.config[name] for name in config} == config
    state = model.controlnet.state_dict()
    for name, value in expected.state_dict().items():
        drawn = name.startswith("controlnet_cond_embedding.") and "conv_out" not in name
        assert state[name].shape == value.shape
        assert drawn or torch.equal(state[name], value), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", ["new", "from a folder"])
def test_built_by_module_and_without_weights_it_is_the_same_model(
    folder: Path, kind: str, start: str, tmp_path: Path
) -> None:
    config = config_of(folder, kind)
    if start == "from a folder":
        scrambled(built(config)).controlnet.save_pretrained(tmp_path)
        config = config_of(folder, kind, controlnet=str(tmp_path))
    state = build_model(config, seed=4).state_dict()
    placed: list[nn.Module] = []
    torch.manual_seed(123)  # what the global generator holds does not matter
    by_module = build_model_by_module(config, seed=4, fill=True, place=placed.append)
    assert len(placed) > 20
    assert state.keys() == by_module.state_dict().keys()
    for name, value in by_module.state_dict().items():
        assert torch.equal(value, state[name]), name
    with torch.device("meta"):
        planned = build_model_without_weights(config).state_dict()
    assert {name: value.shape for name, value in planned.items()} == {n: v.shape for n, v in state.items()}


def test_the_seed_draws_the_embedding_of_the_image_alone(folder: Path) -> None:
    config = config_of(folder, "sd21")
    first, again, other = (built(config, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    differing = {name for name, value in first.items() if not torch.equal(value, other[name])}
    assert differing
    assert all(name.startswith("controlnet.controlnet_cond_embedding.") for name in differing)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_trains_gets_a_gradient_and_belongs_to_the_controlnet(folder: Path, kind: str) -> None:
    config = config_of(folder, kind)
    model = scrambled(built(config))
    names = trainable_parameters(model, config)
    freeze_the_rest(model, names)
    inputs = RestorationModel(model, config, CPU).inputs(  # type: ignore[arg-type]
        torch.randn(2, 4, 16, 16), torch.randn(2, 4 if kind == "sd35" else 12, 16, 16), torch.tensor([3.0, 7.0])
    )
    # Texts of zeros, and of one token, hide what takes them in.
    inputs["encoder_hidden_states"] = torch.randn(2, 3, TEXT[kind][0])
    if kind == "sd35":
        inputs["pooled_projections"] = torch.randn(2, 8)
    model(**inputs).sample.square().mean().backward()
    assert all(name.startswith("controlnet.") for name in names)
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == names
    idle = {name for name, _ in model.named_parameters() if name.startswith("controlnet.")} - names
    assert bool(idle) is (kind == "sd35")
    assert all(name.startswith("controlnet.transformer_blocks.1.") for name in idle)


@pytest.mark.parametrize("kind", ["sd35", "sd21"])
def test_recomputing_blocks_leaves_gradients_as_they_are(folder: Path, kind: str) -> None:
    config = config_of(folder, kind)
    gradients = []
    for backend in (None, "torch"):
        model = scrambled(built(config))
        freeze_the_rest(model, trainable_parameters(model, config))
        names = enable_activation_checkpointing(model, ActivationCheckpointingConfig(backend=backend))
        assert any(name.startswith("controlnet.") for name in names) is (backend == "torch")
        restoration = RestorationModel(model, config, CPU)  # type: ignore[arg-type]
        sample = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        reference = restoration.latents.reference(sample[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3))
        model.train()
        restoration.predict(sample, reference, torch.tensor([300.0])).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=1e-6)


def test_features_are_tapped_in_the_frozen_model(folder: Path) -> None:
    model = built(config_of(folder, "sd35"))
    assert adapter_for(model).model is model.module
    assert model.config.num_layers == 4
    assert model.config.controlnet["num_layers"] == 2
    assert list(model.control_blocks) == ["transformer_blocks.0", "transformer_blocks.1"]
    unet = built(config_of(folder, "sdxl"))
    assert list(unet.control_blocks) == ["down_blocks.0", "down_blocks.1", "down_blocks.2", "mid_block"]


@pytest.mark.slow  # diffusers' pipelines take seconds to import
@pytest.mark.parametrize("kind", ["sd35", "sd21"])
def test_diffusers_pipelines_give_it_what_it_was_trained_with(
    folder: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(folder, kind)
    model = scrambled(built(config))
    model.controlnet.save_pretrained(tmp_path)
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)
    # It draws the condition from the posterior, whose mean ours is.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    seen: list[tuple[dict[str, Any], torch.Tensor]] = []
    if kind == "sd35":
        base = SD3Transformer2DModel.from_pretrained(folder / kind, local_files_only=True)
        texts = dict.fromkeys(
            [f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")]
        )
        pipeline = diffusers.StableDiffusion3ControlNetPipeline(
            transformer=base,
            controlnet=SD3ControlNetModel.from_pretrained(tmp_path, local_files_only=True),
            vae=vae,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            **texts,
        )
        given = {"control_image": image, "pooled_prompt_embeds": torch.zeros(1, 8)}
    else:
        base = UNet2DConditionModel.from_pretrained(folder / kind, local_files_only=True)
        pipeline = diffusers.StableDiffusionControlNetPipeline(
            unet=base,
            controlnet=ControlNetModel.from_pretrained(tmp_path, local_files_only=True),
            vae=vae,
            scheduler=diffusers.DDIMScheduler(),
            text_encoder=None,
            tokenizer=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        given = {"image": (image + 1) / 2}
    pipeline.set_progress_bar_config(disable=True)

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.append((dict(zip(("sample", "timestep"), args, strict=False)) | kwargs, output[0]))

    base.register_forward_hook(see, with_kwargs=True)
    pipeline(
        **given,
        prompt_embeds=torch.zeros(1, 1, TEXT[kind][0]),
        guidance_scale=1.0,
        num_inference_steps=2,
        output_type="latent",
        height=32,
        width=48,
    )
    assert len(seen) == 2
    restoration = RestorationModel(model, config, CPU)  # type: ignore[arg-type]
    for inputs, output in seen:
        sample = inputs["hidden_states" if kind == "sd35" else "sample"]
        with torch.no_grad():
            reference = restoration.latents.reference(image)
            own = restoration.predict(sample, reference, inputs["timestep"].reshape(1).float())
        torch.testing.assert_close(own, output, rtol=0, atol=1e-5)


def test_an_attention_backend_is_taken_by_both(folder: Path) -> None:
    config = config_of(folder, "sd35")
    model = scrambled(built(config))
    expected = predict(model, config)
    use_attention_backend(model, "_native_math", device=CPU, dtype=torch.float32)
    torch.testing.assert_close(predict(model, config), expected, rtol=1e-4, atol=1e-5)


class TestMistakes:
    @pytest.mark.parametrize("entry", ["all", "*transformer_blocks.0.*", "module.proj_out.*"])
    def test_the_frozen_model_cannot_train(self, folder: Path, entry: str) -> None:
        config = config_of(folder, "sd35", trainable=entry)
        model = built(config)
        with pytest.raises(ConfigError, match=r"would train module\..*set model.trainable to control"):
            trainable_parameters(model, config)

    def test_part_of_the_controlnet_can_train(self, folder: Path) -> None:
        config = config_of(folder, "sd35", trainable=["attention", "controlnet.pos_embed_input.*"])
        names = trainable_parameters(built(config), config)
        assert names
        assert all(".attn" in name or "pos_embed_input" in name for name in names)

    def test_settings_that_do_not_go_together(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="pretrained, that model's folder, is not given"):
            ModelConfig(conditioning="controlnet")
        with pytest.raises(ValueError, match="controlnet is given, but conditioning is concat"):
            ModelConfig(controlnet="somewhere")
        with pytest.raises(ValueError, match="conditioning controlnet with lora"):
            config_of(folder, "sd35", lora={}, trainable="all")

    def test_a_model_with_inputs_for_the_image_already(self, folder: Path, tmp_path: Path) -> None:
        concat = build_model(config_of(folder, "sd21", conditioning="concat"), seed=0)
        concat.save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"the model takes 8 input channels; model.latents=vae needs 4"):
            build_model(config_of(folder, "sd21", pretrained=str(tmp_path)), seed=0)

    def test_a_controlnet_of_another_kind_or_damaged(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"model.controlnet: .*config.json not found; expected a folder"):
            build_model(config_of(folder, "sd35", controlnet=str(tmp_path / "nothing")), seed=0)
        with pytest.raises(UserError, match=r"model.controlnet: .* holds UNet2DConditionModel; expected SD3Control"):
            build_model(config_of(folder, "sd35", controlnet=str(folder / "sd21")), seed=0)
        built(config_of(folder, "sd35")).controlnet.save_pretrained(tmp_path / "saved")
        weights = tmp_path / "saved/diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        config = config_of(folder, "sd35", controlnet=str(tmp_path / "saved"))
        with pytest.raises(UserError, match=r"model.controlnet: cannot load"):
            build_model(config, seed=0)
        with pytest.raises(UserError, match=r"model.controlnet: cannot load"):
            build_model_by_module(config, seed=0, fill=True, place=lambda _: None)
        weights.unlink()
        with pytest.raises(UserError, match=r"model.controlnet: .*safetensors not found; expected a folder"):
            build_model(config, seed=0)

    def test_a_controlnet_with_another_condition(self, folder: Path, tmp_path: Path) -> None:
        sd3 = built(config_of(folder, "sd35")).controlnet
        sd3.register_to_config(force_zeros_for_pooled_projection=True)
        sd3.save_pretrained(tmp_path / "sd3")
        with pytest.raises(ConfigError, match="has force_zeros_for_pooled_projection True; only those with False"):
            build_model(config_of(folder, "sd35", controlnet=str(tmp_path / "sd3")), seed=0)
        built(config_of(folder, "sdxl")).controlnet.save_pretrained(tmp_path / "sdxl")
        with pytest.raises(ConfigError, match=r"has block_out_channels .*16, 32, 32.*, but model.pretrained has"):
            build_model(config_of(folder, "sd21", controlnet=str(tmp_path / "sdxl")), seed=0)
        unet = UNet2DConditionModel.from_pretrained(folder / "sd21", local_files_only=True)
        ControlNetModel.from_unet(unet).save_pretrained(tmp_path / "unet")
        with pytest.raises(ConfigError, match="3 channels 8 times smaller; those here have 3, and latents are 2 times"):
            build_model(config_of(folder, "sd21", controlnet=str(tmp_path / "unet")), seed=0)

    def test_latents_that_the_image_has_not(self, folder: Path) -> None:
        config = config_of(folder, "sd35", latents="residual", vae=None)
        with pytest.raises(ConfigError, match="conditioning=controlnet needs the low-resolution image as latents"):
            build_model(config, seed=0)
