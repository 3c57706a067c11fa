from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from sd3 import model_inputs
from tiny_models import tiny_unet, unet_output
from torch import Tensor, nn

from framer import Framer
from framer.config.distillation import FramerConfig
from framer.config.loading import build_config
from framer.config.lora import LoraConfig
from framer.config.model import ModelConfig
from framer.errors import ConfigError, MissingExtraError
from framer.features import adapter_for
from framer.models.build import build_model
from framer.models.lora import (
    activate_lora,
    add_lora,
    freeze_lora,
    lora_adapters,
    lora_parameters,
    lora_targets,
    merged_weights,
    train_lora,
)
from framer.models.trainable import trainable_parameters

ARCHITECTURE = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "dual_attention_layers": [0]}
SIGMAS = torch.tensor([0.2, 0.7])


def _model(lora: dict[str, Any] | None = None) -> Any:
    """With random weights throughout: DiT's start has gates of zero, behind which nothing counts."""
    model = build_model(ModelConfig(architecture=ARCHITECTURE), seed=0)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    if lora is not None:
        add_lora(model, LoraConfig(**lora), seed=0)
    return model


def _inputs(model: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 3, 16, 16, generator=generator)
    condition = torch.randn(2, model.config.in_channels - 3, 16, 16, generator=generator)
    return model_inputs(model, sample, condition, 1000 * SIGMAS)


def _output(model: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**_inputs(model)).sample
    return output


def _fill_second_factors(model: nn.Module, adapter_name: str) -> None:
    """As if the set had been trained."""
    generator = torch.Generator().manual_seed(len(adapter_name))
    with torch.no_grad():
        for name in sorted(lora_parameters(model, adapter_name)):
            if ".lora_B." in name:
                parameter = model.get_parameter(name)
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def test_by_default_every_projection_of_attention_and_nothing_else() -> None:
    model = _model()
    found = set(lora_targets(model, LoraConfig()))
    assert found == {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (".attn." in name or ".attn2." in name)
    }
    assert {"transformer_blocks.0.attn2.to_q", "transformer_blocks.1.attn.to_add_out"} <= found


@pytest.mark.parametrize(
    ("entry", "count", "example"),
    [
        ("to_q", 4, "transformer_blocks.0.attn2.to_q"),
        ("attn.to_out.0", 3, "transformer_blocks.2.attn.to_out.0"),
        ("transformer_blocks.1.ff.*", 2, "transformer_blocks.1.ff.net.2"),
        ("pos_embed.proj", 1, "pos_embed.proj"),
        # Within the attention there are norms too, which have no adapters.
        ("transformer_blocks.1.attn.*", 8, "transformer_blocks.1.attn.add_k_proj"),
    ],
)
def test_ends_of_names_and_patterns(entry: str, count: int, example: str) -> None:
    found = lora_targets(_model(), LoraConfig(target_modules=[entry]))
    assert len(found) == count
    assert example in found


@pytest.mark.parametrize("entry", ["o_q", "attn", "transformer_blocks.9.*", "transformer_blocks.0.attn.norm_q"])
def test_a_target_that_matches_no_layer_is_named_with_examples(entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lora_targets(_model(), LoraConfig(target_modules=["to_q", entry]))
    message = str(caught.value)
    assert f"'{entry}' matches none of the model's" in message
    assert "transformer_blocks.1." in message


def test_the_default_where_there_is_no_attention() -> None:
    with pytest.raises(ConfigError, match=r"Sequential has no linear layers of attention.* such as 0, 1"):
        lora_targets(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), LoraConfig())


def test_new_adapters_change_no_block_and_leave_the_random_state() -> None:
    model = _model()
    before, outputs = _output(model), _block_outputs(model)
    state = torch.get_rng_state()
    add_lora(model, LoraConfig(rank=2), seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert (_output(model) - before).abs().max() < 1e-6
    for after, expected in zip(_block_outputs(model), outputs, strict=True):
        assert (after - expected).abs().max() < 1e-6


def _block_outputs(model: Any) -> tuple[Tensor, ...]:
    framer = Framer(model, FramerConfig())
    with framer.capture():
        model(**_inputs(model))
    assert framer._tap.capture is not None
    return tuple(feature.detach() for feature in framer._tap.capture.features.values())


def test_framer_reaches_the_adapters_of_every_student() -> None:
    model = _model({"rank": 2})
    _fill_second_factors(model, "default")
    framer = Framer(model, FramerConfig())
    inputs = _inputs(model)
    with framer.capture():
        model(**inputs)
    framer.loss(sample=inputs["hidden_states"][:, :3], sigmas=SIGMAS).total.backward()
    *students, teacher = adapter_for(model).block_names
    for block in students:
        gradients = [
            model.get_parameter(f"{block}.attn.to_v.{factor}.default.weight").grad for factor in ("lora_A", "lora_B")
        ]
        assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients), block
    assert model.get_parameter(f"{teacher}.attn.to_v.lora_A.default.weight").grad is None
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize(("init", "deviation"), [("gaussian", 1 / 8), (True, 1 / (3 * 16) ** 0.5)])
def test_init_seed_and_scale(init: Any, deviation: float) -> None:
    one, same, other = _model(), _model(), _model()
    for model, seed in ((one, 1), (same, 1), (other, 2)):
        add_lora(model, LoraConfig(rank=8, alpha=2, init=init), seed=seed)
    first = [
        model.get_parameter("transformer_blocks.0.attn.to_q.lora_A.default.weight") for model in (one, same, other)
    ]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    factors = torch.cat([one.get_parameter(n).flatten() for n in lora_parameters(one) if ".lora_A." in n])
    assert float(factors.detach().std()) == pytest.approx(deviation, rel=0.05)
    assert all(not one.get_parameter(n).any() for n in lora_parameters(one) if ".lora_B." in n)
    assert one.transformer_blocks[0].attn.to_q.scaling == {"default": 0.25}


def test_what_trains() -> None:
    lora = {"target_modules": ["to_q"], "train_also": ["control", "transformer_blocks.1.norm1.*"]}
    config = ModelConfig(architecture=ARCHITECTURE, lora=lora)  # type: ignore[arg-type]
    model = build_model(config, seed=0)
    assert trainable_parameters(model, config) == {
        *lora_parameters(model),
        "pos_embed.proj.weight",
        "pos_embed.proj.bias",
        "transformer_blocks.1.norm1.linear.weight",
        "transformer_blocks.1.norm1.linear.bias",
    }


def test_an_adapter_and_all_of_its_layer_do_not_both_train() -> None:
    config = ModelConfig(architecture=ARCHITECTURE, lora={"target_modules": ["to_q"], "train_also": ["attention"]})  # type: ignore[arg-type]
    model = build_model(config, seed=0)
    with pytest.raises(
        ConfigError, match=r"train_also: transformer_blocks\.0\.attn\.to_q\.bias is of a layer that has"
    ):
        trainable_parameters(model, config)


PIXEL = LoraConfig(rank=2, target_modules=["*conv*", "to_q", "to_k", "to_v", "to_out.0"])


def test_two_sets_of_which_one_trains() -> None:
    """As PiSA-SR has them: pixel first, then semantic beside the frozen pixel."""
    model = tiny_unet()
    add_lora(model, PIXEL, seed=0, adapter_name="pixel")
    _fill_second_factors(model, "pixel")
    with torch.no_grad():
        pixel_alone = unet_output(model)
    modules = add_lora(model, PIXEL, seed=0, adapter_name="semantic")
    assert lora_adapters(model) == ("pixel", "semantic")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == lora_parameters(model, "semantic")
    assert len([p for module in modules for p in module.parameters()]) == len(lora_parameters(model, "semantic"))
    output = unet_output(model)
    assert (output.detach() - pixel_alone).abs().max() < 1e-6
    output.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in lora_parameters(model, "semantic")), name
    one, other = (model.get_parameter(f"conv_in.lora_A.{name}.weight") for name in ("pixel", "semantic"))
    assert not torch.equal(one, other)


def test_sets_are_switched_and_frozen_apart() -> None:
    model = tiny_unet()
    with torch.no_grad():
        bare = unet_output(model)
        outputs: dict[str, Tensor] = {}
        for name in ("pixel", "semantic"):
            add_lora(model, PIXEL, seed=0, adapter_name=name)
            _fill_second_factors(model, name)
        for active in (("pixel",), ("semantic",), ("pixel", "semantic"), ()):
            activate_lora(model, *active)
            outputs["+".join(active)] = unet_output(model)
            assert {n for n, p in model.named_parameters() if p.requires_grad} == lora_parameters(model, "semantic")
        assert torch.equal(outputs[""], bare)
        activate_lora(model, "pixel", "semantic")
        assert torch.equal(unet_output(model), outputs["pixel+semantic"])
    pairs = [("", "pixel"), ("pixel", "semantic"), ("pixel", "pixel+semantic"), ("semantic", "pixel+semantic")]
    assert all((outputs[a] - outputs[b]).abs().max() > 1e-3 for a, b in pairs)
    freeze_lora(model, "semantic")
    train_lora(model, "pixel")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == lora_parameters(model, "pixel")


def test_names_of_sets_that_do_not_fit() -> None:
    model = _model({"rank": 2})
    with pytest.raises(ValueError, match="has adapters named 'default' already"):
        add_lora(model, LoraConfig(), seed=0)
    for call in (activate_lora, freeze_lora, train_lora, lora_parameters):
        with pytest.raises(ValueError, match="no adapters named 'pixel'; it has default"):
            call(model, "pixel")
    with pytest.raises(ValueError, match="no adapters named 'pixel'; it has none"):
        activate_lora(_model(), "pixel")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_compute_what_adapters_compute(dtype: torch.dtype) -> None:
    config = LoraConfig(rank=2, alpha=3, target_modules=["*conv*", "to_q", "to_v"])
    model, plain, meta = tiny_unet(), tiny_unet(), tiny_unet().to("meta")
    add_lora(model, config, seed=0)
    _fill_second_factors(model, "default")
    adapters = lora_parameters(model)
    # Frozen weights in half precision beside float32 adapters, as a run of half precision leaves them.
    weights = {n: v if n in adapters else v.to(dtype) for n, v in model.state_dict().items()}
    merged = merged_weights(meta, weights, config)
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    model.load_state_dict(weights)
    with torch.no_grad():
        assert (unet_output(plain) - unet_output(model)).abs().max() < 1e-5
    assert merged["conv_in.weight"].dtype == torch.float32
    assert merged["conv_norm_out.weight"].dtype == dtype


def test_depthwise_convolutions_have_no_adapters() -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 6, 3))
    assert lora_targets(model, LoraConfig(target_modules=["*"])) == ["1"]
    with pytest.raises(ConfigError, match="'0' matches none of the model's 1 linear layers"):
        lora_targets(model, LoraConfig(target_modules=["0"]))


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"rank": 0}, "lora.rank"),
        ({"alpha": 0}, "lora.alpha"),
        ({"dropout": 1.0}, "lora.dropout"),
        ({"target_modules": []}, "lora.target_modules"),
        ({"init": 1}, "lora.init"),
        ({"init": False}, "lora.init"),
        ({"init": "pissa"}, "lora.init"),
        ({"export": "both"}, "lora.export"),
        ({"ranks": 3}, "did you mean 'rank'"),
    ],
)
def test_settings_that_make_no_sense(section: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_config(ModelConfig, {"lora": section}, source="test")


def test_adapters_and_another_choice_of_what_trains() -> None:
    with pytest.raises(ConfigError, match=r"trainable \['attention'\] has no effect with lora.*lora\.train_also"):
        build_config(ModelConfig, {"lora": {}, "trainable": "attention"}, source="test")


def test_one_word_is_a_list_of_one() -> None:
    config = build_config(LoraConfig, {"target_modules": "to_q", "train_also": "control", "init": True}, source="test")
    assert (config.target_modules, config.train_also, config.init) == (["to_q"], ["control"], True)


def test_peft_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"-e '\.\[lora\]"):
        add_lora(_model(), LoraConfig(), seed=0)


def test_a_condition_that_could_never_count_is_refused(tmp_path: Any) -> None:
    generator = build_model(ModelConfig(architecture=ARCHITECTURE), seed=0)  # type: ignore[arg-type]
    config = {**generator.config, "in_channels": 3}
    type(generator).from_config(config).save_pretrained(tmp_path)
    for accepted in ({"train_also": ["control"]}, {"target_modules": ["to_q", "pos_embed.proj"]}):
        build_model(ModelConfig(pretrained=str(tmp_path), lora=accepted), seed=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"would not train.*add control to model\.lora\.train_also"):
        build_model(ModelConfig(pretrained=str(tmp_path), lora={}), seed=0)  # type: ignore[arg-type]
