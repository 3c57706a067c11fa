from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from sd3 import model_inputs
from torch import nn

from framer.errors import UserError
from framer.models.conditioning import expand_input_channels


def make_model(in_channels: int = 4) -> SD3Transformer2DModel:
    """A small float64 model with random weights everywhere, so that every input matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=in_channels,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=6,
            caption_projection_dim=16,
            pooled_projection_dim=5,
            pos_embed_max_size=8,
        ).double()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def output_of(model: SD3Transformer2DModel, sample: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    timesteps = torch.linspace(300, 700, len(sample))
    return model(**model_inputs(model, sample, condition, timesteps)).sample


@pytest.mark.parametrize("condition_size", [1.0, 1e6])
def test_the_widened_model_computes_what_it_did_whatever_the_condition(condition_size: float) -> None:
    model = make_model()
    sample = draw(2, 4, 8, 12)
    with torch.no_grad():
        before = output_of(model, sample, sample[:, :0])
        expand_input_channels(model, "pos_embed.proj", 7)
        after = output_of(model, sample, condition_size * draw(2, 3, 8, 12, seed=2))
    assert before.abs().mean() > 0.01
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)


def test_the_old_weights_stay_and_the_new_ones_are_zero() -> None:
    model = make_model()
    weight, bias = model.pos_embed.proj.weight.clone(), model.pos_embed.proj.bias.clone()
    expand_input_channels(model, "pos_embed.proj", 8)
    wide = model.pos_embed.proj
    assert wide.weight.shape == (16, 8, 2, 2)
    assert torch.equal(wide.weight[:, :4], weight)
    assert not wide.weight[:, 4:].any()
    assert torch.equal(wide.bias, bias)
    assert wide.weight.dtype == torch.float64


def test_the_new_channels_can_be_learned() -> None:
    model = make_model()
    expand_input_channels(model, "pos_embed.proj", 7)
    output_of(model, draw(2, 4, 8, 8), draw(2, 3, 8, 8, seed=2)).square().mean().backward()
    gradient = model.pos_embed.proj.weight.grad
    assert (gradient[:, 4:].flatten(2).abs().amax(dim=(0, 2)) > 0).all()


def test_the_config_says_the_new_channels_and_diffusers_loads_the_widened_model(tmp_path: Path) -> None:
    model = make_model()
    expand_input_channels(model, "pos_embed.proj", 7)
    with torch.no_grad():
        model.pos_embed.proj.weight[:, 4:] = 0.1
    model.save_pretrained(tmp_path)
    again, loaded = SD3Transformer2DModel.from_pretrained(
        tmp_path, torch_dtype=torch.float64, local_files_only=True, output_loading_info=True
    )
    assert model.config.in_channels == again.config.in_channels == 7
    assert again.config.out_channels == 4
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    sample, condition = draw(1, 4, 8, 8), draw(1, 3, 8, 8, seed=2)
    with torch.no_grad():
        assert torch.equal(output_of(again.eval(), sample, condition), output_of(model, sample, condition))


def test_as_many_channels_as_there_are_change_nothing() -> None:
    model = make_model()
    embedding = model.pos_embed.proj
    expand_input_channels(model, "pos_embed.proj", 4)
    assert model.pos_embed.proj is embedding


def test_fewer_channels_than_there_are_are_refused() -> None:
    with pytest.raises(UserError, match="takes 4 input channels, more than the 3"):
        expand_input_channels(make_model(), "pos_embed.proj", 3)


def test_widening_draws_no_random_numbers() -> None:
    model = make_model()
    state = torch.get_rng_state()
    expand_input_channels(model, "pos_embed.proj", 7)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_inputs_of_an_image_without_a_caption() -> None:
    model = make_model(in_channels=7)
    sample, condition, timesteps = draw(2, 4, 6, 8), draw(2, 3, 6, 8, seed=2), torch.tensor([998.39, 1.5])
    inputs = model_inputs(model, sample, condition, timesteps)
    assert torch.equal(inputs["hidden_states"][:, :4], sample)
    assert torch.equal(inputs["hidden_states"][:, 4:], condition)
    assert inputs["encoder_hidden_states"].shape == (2, 1, 6)
    assert inputs["pooled_projections"].shape == (2, 5)
    assert not inputs["encoder_hidden_states"].any()
    assert not inputs["pooled_projections"].any()
    assert torch.equal(inputs["timestep"], timesteps)
    more = model_inputs(model, sample, condition, timesteps, text_tokens=3)
    assert more["encoder_hidden_states"].shape == (2, 3, 6)


def test_the_timestep_stays_float32_beside_bf16_images() -> None:
    model = make_model(in_channels=7)
    image = torch.zeros(1, 4, 4, 4, dtype=torch.bfloat16)
    inputs = model_inputs(model, image, image[:, :3], torch.tensor([998.39]))
    assert inputs["timestep"].dtype == torch.float32
    assert inputs["encoder_hidden_states"].dtype == torch.bfloat16
