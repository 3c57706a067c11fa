"""Families of models: built whole and by module, from folders and anew, and called as the trainer calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from framer.config.model import ModelConfig
from framer.errors import ConfigError, UserError
from framer.models.backbones import backbone_for
from framer.models.build import build_model, build_model_by_module, build_model_without_weights
from framer.models.latents import build_latents, latent_shape
from framer.models.restoration_model import RestorationModel
from framer.models.trainable import trainable_parameters

CPU = torch.device("cpu")
SD3 = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "patch_size": 2, "pos_embed_max_size": 16}
XL = {"pooled_projection_dim": 12, "transformer_layers_per_block": [1, 2, 1]}
CASES: dict[str, dict[str, Any]] = {
    "sd3": {"architecture": {"type": "sd3", **SD3}},
    "control stream": {"architecture": SD3, "conditioning": "control_stream", "latents": "pixel"},
    "unet": {"architecture": {"type": "unet"}},
    "unet with sizes": {"architecture": {"type": "unet", **XL}},
}


def config_of(case: str, **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({**CASES[case], **changes})


def scrambled(model: nn.Module) -> nn.Module:
    """Zeros are what hides a missing connection."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def predict(model: nn.Module, config: ModelConfig, *, condition_seed: int = 2) -> torch.Tensor:
    restoration = RestorationModel(model, config, CPU)
    channels = restoration.latents.shape.channels
    sample = torch.randn(2, channels, 16, 24, generator=torch.Generator().manual_seed(1))
    upsampled = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(condition_seed))
    with torch.no_grad():
        return restoration.predict(sample, upsampled, torch.tensor([300.0, 700.0]))


@pytest.mark.parametrize("case", CASES)
def test_the_model_sees_the_condition_and_gives_latents(case: str) -> None:
    config = config_of(case)
    model = scrambled(build_model(config, seed=0)).eval()
    output = predict(model, config)
    assert output.shape == (2, 3, 16, 24)
    assert not torch.allclose(output, predict(model, config, condition_seed=3))


@pytest.mark.parametrize("case", CASES)
def test_built_by_module_it_is_the_same_model(case: str) -> None:
    config = config_of(case)
    placed: list[nn.Module] = []
    whole, by_module = (
        build_model(config, seed=4),
        build_model_by_module(config, seed=4, fill=True, place=placed.append),
    )
    assert placed
    state, other = whole.state_dict(), by_module.state_dict()
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("case", CASES)
def test_without_weights_it_has_the_same_sizes(case: str) -> None:
    config = config_of(case)
    with torch.device("meta"):
        model = build_model_without_weights(config)
    expected = {name: value.shape for name, value in build_model(config, seed=0).state_dict().items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == expected


@pytest.mark.parametrize("case", CASES)
def test_a_saved_model_comes_back_whole_and_by_module(case: str, tmp_path: Path) -> None:
    config = config_of(case)
    model = scrambled(build_model(config, seed=0))
    model.save_pretrained(tmp_path)
    again = config_of(case, pretrained=str(tmp_path))
    assert type(build_model(again, seed=1)) is type(model)
    for loaded in (build_model(again, seed=1), build_model_by_module(again, seed=1, fill=True, place=lambda _: None)):
        for name, value in model.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name]), name


@pytest.fixture
def sd3_folder(tmp_path: Path) -> Path:
    """An SD3 of pixels, without a condition."""
    scrambled(
        SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=3,
            out_channels=3,
            num_layers=3,
            num_attention_heads=2,
            attention_head_dim=8,
            joint_attention_dim=8,
            caption_projection_dim=16,
            pooled_projection_dim=8,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        )
    ).save_pretrained(tmp_path / "sd3")
    return tmp_path / "sd3"


def test_sd3_is_given_the_stream_whole_and_by_module(sd3_folder: Path) -> None:
    config = ModelConfig(pretrained=str(sd3_folder), conditioning="control_stream", latents="pixel")
    whole = build_model(config, seed=0)
    by_module = build_model_by_module(config, seed=0, fill=True, place=lambda _: None)
    assert whole.config.in_channels == by_module.config.in_channels == 3
    base = SD3Transformer2DModel.from_pretrained(sd3_folder, local_files_only=True).state_dict()
    assert base.keys() < whole.state_dict().keys() == by_module.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, by_module.state_dict()[name]), name
        assert name not in base or torch.equal(value, base[name])
    block = whole.transformer_blocks[0]
    assert torch.equal(block.control_attn2.to_out.weight, block.attn2.to_out[0].weight)
    assert not block.control_attn.to_q.weight.any()
    with torch.device("meta"):
        assert build_model_without_weights(config).state_dict().keys() == whole.state_dict().keys()


@pytest.mark.parametrize("variant", ["r1", "v1"])
def test_control_parameters_are_those_of_the_stream(sd3_folder: Path, variant: str) -> None:
    config = ModelConfig(
        pretrained=str(sd3_folder),
        conditioning="control_stream",
        control_variant=variant,  # type: ignore[arg-type]
        latents="pixel",
        trainable=["control"],
    )
    names = trainable_parameters(build_model(config, seed=0), config)
    assert all(".control_" in name for name in names)
    assert any("control_attn.to_k" in name for name in names) is (variant == "r1")


def test_a_model_with_the_stream_keeps_its_variant(tmp_path: Path) -> None:
    build_model(config_of("control stream", control_variant="v1"), seed=0).save_pretrained(tmp_path)
    again = {"pretrained": str(tmp_path)}
    assert build_model(config_of("control stream", control_variant="v1", **again), seed=0).config.variant == "v1"
    for build in (
        lambda config: build_model(config, seed=0),
        lambda config: build_model_by_module(config, seed=0, fill=True, place=lambda _: None),
    ):
        with pytest.raises(ConfigError, match=r"control_variant r1: .* was trained as v1; set .* to v1"):
            build(config_of("control stream", **again))
    with pytest.raises(ValueError, match="control_variant v1 has no effect with conditioning concat"):
        config_of("sd3", control_variant="v1")


def test_the_stream_needs_latents_like_the_noisy_ones() -> None:
    with pytest.raises(ConfigError, match=r"control_stream needs .*residual gives 6 channels beside 3; "):
        build_model(config_of("control stream", latents="residual"), seed=0)


def test_a_unet_cannot_be_given_the_stream() -> None:
    config = ModelConfig.model_validate({"architecture": {"type": "unet"}, "conditioning": "control_stream"})
    with pytest.raises(ConfigError, match=r"control_stream is not possible with model.architecture.type unet"):
        backbone_for(config)


def test_a_folder_with_the_stream_is_not_joined_by_channels(tmp_path: Path) -> None:
    build_model(config_of("control stream"), seed=0).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="concat is not possible with SD3ControlStreamTransformer2DModel"):
        backbone_for(ModelConfig(pretrained=str(tmp_path)))


def test_sdxl_sees_its_sizes() -> None:
    config = config_of("unet with sizes")
    model = build_model(config, seed=0)
    assert isinstance(model, UNet2DConditionModel)
    inputs = RestorationModel(model, config, CPU).inputs(
        torch.zeros(2, 3, 16, 24), torch.zeros(2, 3, 16, 24), torch.tensor([1.0, 2.0])
    )
    added = inputs["added_cond_kwargs"]
    assert added["text_embeds"].shape == (2, 12)
    assert added["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]] * 2


class TestText:
    def test_a_file_gives_the_embeddings(self, tmp_path: Path) -> None:
        prompt, pooled = torch.randn(5, 32), torch.randn(1, 32)
        save_file({"prompt_embeds": prompt, "pooled_prompt_embeds": pooled}, tmp_path / "null.safetensors")
        config = config_of("sd3", text_embeddings=str(tmp_path / "null.safetensors"))
        inputs = RestorationModel(build_model(config, seed=0), config, CPU).inputs(
            torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16), torch.tensor([1.0, 2.0])
        )
        assert torch.equal(inputs["encoder_hidden_states"], prompt.expand(2, -1, -1))
        assert torch.equal(inputs["pooled_projections"], pooled.expand(2, -1))

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"prompt_embeds": torch.zeros(5, 32)}, "lacks pooled_prompt_embeds; it holds prompt_embeds"),
            (
                {"prompt_embeds": torch.zeros(5, 31)},
                r"prompt_embeds .* shape \[5, 31\]; expected \[tokens, 32\]",
            ),
            ({"prompt_embeds": torch.zeros(3, 5, 32)}, r"has shape \[3, 5, 32\]"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
        save_file(tensors, tmp_path / "null.safetensors")
        config = config_of("sd3", text_embeddings=str(tmp_path / "null.safetensors"))
        with pytest.raises(UserError, match=message):
            RestorationModel(build_model(config, seed=0), config, CPU)

    def test_a_missing_or_damaged_file(self, tmp_path: Path) -> None:
        (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
        for name, message in (("missing", "not found"), ("damaged", "cannot read")):
            config = config_of("sd3", text_embeddings=str(tmp_path / f"{name}.safetensors"))
            with pytest.raises(UserError, match=message):
                RestorationModel(build_model(config, seed=0), config, CPU)


@pytest.fixture
def vae_folder(tmp_path: Path) -> Path:
    """A tiny autoencoder of two stages: latents half as large as images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(16, 16),
            latent_channels=4,
            norm_num_groups=8,
            sample_size=32,
            scaling_factor=0.5,
            shift_factor=0.1,
        ).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


class TestVae:
    def test_latents_are_drawn_shifted_and_scaled(self, vae_folder: Path) -> None:
        config = config_of("sd3", latents="vae", vae=str(vae_folder))
        latents = build_latents(config, CPU)
        assert latents.shape == latent_shape(config) == (4, 4, 4, 2)
        image = torch.rand(2, 3, 16, 24) * 2 - 1
        first = latents.encode(image, image, indices=[5, 9], seed=3)
        vae = AutoencoderKL.from_pretrained(vae_folder, local_files_only=True).eval()
        with torch.no_grad():
            posterior = vae.encode(image).latent_dist
        assert first.shape == (2, 4, 8, 12)
        noise = (first / 0.5 + 0.1 - posterior.mean) / posterior.std
        assert 0.8 < float(noise.std()) < 1.2
        # Draws belong to samples, whatever else is in the batch.
        alone = latents.encode(image[1:], image[1:], indices=[9], seed=3)
        torch.testing.assert_close(alone, first[1:], rtol=0, atol=1e-5)
        torch.testing.assert_close(latents.reference(image), (posterior.mean - 0.1) * 0.5)
        with torch.no_grad():
            expected = vae.decode(posterior.mean).sample.clamp(-1, 1)
        torch.testing.assert_close(latents.decode(latents.reference(image), image), expected, rtol=0, atol=1e-5)

    def test_gradients_go_through_the_decoder_and_not_into_it(self, vae_folder: Path) -> None:
        latents = build_latents(config_of("sd3", latents="vae", vae=str(vae_folder)), CPU)
        value = torch.randn(1, 4, 8, 8, requires_grad=True)
        latents.decode(value, torch.zeros(1, 3, 16, 16)).square().mean().backward()
        assert value.grad is not None
        assert value.grad.any()

    @pytest.mark.parametrize("conditioning", ["concat", "control_stream"])
    def test_a_model_of_latents_is_built(self, vae_folder: Path, conditioning: str) -> None:
        config = config_of("sd3", latents="vae", vae=str(vae_folder), conditioning=conditioning)
        model = scrambled(build_model(config, seed=0))
        assert model.config.in_channels == (8 if conditioning == "concat" else 4)
        restoration = RestorationModel(model, config, CPU)
        image = torch.rand(2, 3, 16, 24)
        reference = restoration.latents.reference(image)
        output = restoration.predict(torch.randn_like(reference), reference, torch.tensor([1.0, 2.0]))
        assert output.shape == (2, 4, 8, 12)

    def test_on_meta_weights_are_not_read(self, vae_folder: Path) -> None:
        (vae_folder / "diffusion_pytorch_model.safetensors").unlink()
        config = config_of("sd3", latents="vae", vae=str(vae_folder))
        assert build_latents(config, torch.device("meta")).shape.downscale == 2
        with pytest.raises(UserError, match=r"model.vae: .*safetensors not found"):
            build_latents(config, CPU)

    def test_mistakes(self, vae_folder: Path, sd3_folder: Path) -> None:
        with pytest.raises(UserError, match=r"model.vae: .*config.json not found"):
            latent_shape(config_of("sd3", latents="vae", vae=str(vae_folder.parent / "missing")))
        with pytest.raises(UserError, match="holds SD3Transformer2DModel; expected AutoencoderKL"):
            latent_shape(config_of("sd3", latents="vae", vae=str(sd3_folder)))
        with pytest.raises(ValueError, match="vae, the autoencoder's folder, is not given"):
            config_of("sd3", latents="vae")
        with pytest.raises(ValueError, match="latents is residual"):
            config_of("sd3", vae=str(vae_folder))
