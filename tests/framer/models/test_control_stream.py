"""The low-resolution stream in SD3: what it computes at the start, what trains, and what users do wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from torch import Tensor, nn

from framer.errors import UserError
from framer.models.control_stream import (
    SD3ControlStreamTransformer2DModel,
    attention,
    control_parameter_names,
    from_sd3,
)
from framer.models.modulewise import fill_modules, large_parameters_on_meta
from tests.framer.models.control_stream_cases import (
    DUAL_LAYERS,
    GRID,
    LARGEST,
    LAYERS,
    WIDTH,
    condition,
    draw,
    inputs,
    make_base,
    make_model,
    velocity,
)

EXACT = {"rtol": 0.0, "atol": 1e-12}
TOKENS = GRID[0] * GRID[1]


def hide_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    """No query sees the low-resolution keys."""
    dispatch = attention.dispatch_attention_fn

    def masked(query: Tensor, key: Tensor, value: Tensor, **settings: object) -> Tensor:
        seen = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool)
        seen[:, TOKENS : 2 * TOKENS] = False
        return dispatch(query, key, value, attn_mask=seen, **settings)

    monkeypatch.setattr(attention, "dispatch_attention_fn", masked)


@pytest.mark.parametrize("variant", ["r1", "v1"])
@pytest.mark.parametrize("started", [False, True])
@torch.no_grad()
def test_without_the_condition_the_model_is_its_base_at_any_time(variant: str, started: bool) -> None:
    expected = velocity(make_base())
    assert expected.abs().mean() > 0.01
    torch.testing.assert_close(velocity(make_model(variant, started=started)), expected, **EXACT)


@pytest.mark.parametrize("variant", ["r1", "v1"])
@torch.no_grad()
def test_at_the_start_the_condition_reaches_the_output_through_its_keys_alone(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(variant)
    expected = velocity(make_base())
    assert (velocity(model, condition=condition()) - expected).abs().max() > 0.01
    hide_condition(monkeypatch)
    torch.testing.assert_close(velocity(model, condition=condition()), expected, **EXACT)


@torch.no_grad()
def test_later_the_convolution_is_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(started=True)
    hide_condition(monkeypatch)
    assert (velocity(model, condition=condition()) - velocity(make_base())).abs().max() > 0.01


@torch.no_grad()
def test_both_images_pass_the_same_embedding() -> None:
    model, seen = make_model(), {}
    model.transformer_blocks[0].register_forward_pre_hook(lambda _, __, given: seen.update(given), with_kwargs=True)
    velocity(model, condition=condition())
    embed = make_base().pos_embed
    torch.testing.assert_close(seen["hidden_states"], embed(inputs()["hidden_states"]), **EXACT)
    torch.testing.assert_close(seen["condition_hidden_states"], embed(condition()), **EXACT)


@torch.no_grad()
def test_blocks_give_text_noisy_and_low_resolution_tokens_and_the_last_one_the_noisy_alone() -> None:
    model, given = make_model(), []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda _, __, output: given.append(output))
    velocity(model, condition=condition())
    assert len(given) == LAYERS
    for text, noisy, low_resolution in given[:-1]:
        assert (text.shape, noisy.shape, low_resolution.shape) == (
            (2, 3, WIDTH),
            (2, TOKENS, WIDTH),
            (2, TOKENS, WIDTH),
        )
    assert given[-1][0] is None
    assert given[-1][1].shape == (2, TOKENS, WIDTH)
    assert given[-1][2] is None


def test_only_the_streams_own_parameters_train() -> None:
    model = make_model()
    names = control_parameter_names(model)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == names
    own = {name for name, _ in model.named_parameters()} - {name for name, _ in make_base().named_parameters()}
    assert names == own
    modules = {name.removeprefix("transformer_blocks.0.").rsplit(".", 1)[0] for name in names if ".0." in name[:21]}
    assert modules == {"control_conv"} | {
        f"control_{attn}.to_{what}" for attn in ("attn", "attn2") for what in ("q", "k", "v", "out")
    }
    assert not any("control_attn2" in name for name in names if int(name.split(".")[1]) not in DUAL_LAYERS)


def test_in_v1_the_key_controls_do_not_train() -> None:
    idle = control_parameter_names(make_model("r1")) - control_parameter_names(make_model("v1"))
    assert len(idle) == 2 * (LAYERS + len(DUAL_LAYERS))
    assert all(".to_k." in name for name in idle)


def gradients(model: SD3ControlStreamTransformer2DModel) -> dict[str, Tensor | None]:
    model.zero_grad()
    (velocity(model, condition=condition()) - 1).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("variant", ["r1", "v1"])
def test_the_gradient_reaches_all_that_trains_at_once_or_after_a_step(variant: str) -> None:
    model = make_model(variant)
    trained = control_parameter_names(model)
    # The last block's low-resolution tokens matter to its convolution alone, which starts at zero.
    last = f"transformer_blocks.{LAYERS - 1}.control_attn"
    late = {name for name in trained if name.startswith((f"{last}.to_q", f"{last}.to_out"))}

    first = gradients(model)
    assert {name for name, gradient in first.items() if gradient is not None} >= trained - late
    assert {name for name in trained if first[name] is None or not first[name].any()} == late
    torch.optim.SGD([model.get_parameter(name) for name in sorted(trained)], lr=0.1).step()
    second = gradients(model)
    assert not [name for name in trained if second[name] is None or not second[name].any()]
    assert not [name for name in second.keys() - trained if second[name] is not None]


def test_the_base_keeps_its_memory_and_the_stream_starts_at_zero_but_for_its_copied_output() -> None:
    base = make_base()
    state = torch.get_rng_state()
    model = from_sd3(base)
    assert torch.equal(torch.get_rng_state(), state)
    own = dict(model.named_parameters())
    assert all(own[name].data_ptr() == parameter.data_ptr() for name, parameter in base.named_parameters())
    for name in control_parameter_names(model):
        if ".to_out." in name:
            assert torch.equal(own[name], own[name.replace("control_", "").replace("to_out.", "to_out.0.")])
            assert own[name].data_ptr() != own[name.replace("control_", "").replace("to_out.", "to_out.0.")].data_ptr()
        else:
            assert not own[name].any()


def test_adding_the_stream_keeps_dtype_and_mode_and_the_bases_configuration() -> None:
    base = make_base(torch.bfloat16, qk_norm=None, dual_attention_layers=()).train()
    model = from_sd3(base, variant="v1")
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {key: model.config[key] for key in base.config if not key.startswith("_")} == {
        key: value for key, value in base.config.items() if not key.startswith("_")
    }
    assert model.config.variant == "v1"


@pytest.mark.parametrize("kind", ["qk_norm", "dual_attention_layers"])
@torch.no_grad()
def test_sd3_without_what_sd35_added(kind: str) -> None:
    config: dict[str, object] = {"qk_norm": None} if kind == "qk_norm" else {"dual_attention_layers": ()}
    model = make_model(**config)
    torch.testing.assert_close(velocity(model), velocity(make_base(**config)), **EXACT)
    assert (velocity(model, condition=condition()) - velocity(model)).abs().max() > 0.01


@pytest.mark.parametrize("grid", [(2, 7), (7, 2), (1, LARGEST), (LARGEST, LARGEST)])
@torch.no_grad()
def test_grids_need_not_be_square(grid: tuple[int, int]) -> None:
    model = make_model(started=True)
    output = velocity(model, grid, condition=condition(grid))
    assert output.shape == (2, 4, 2 * grid[0], 2 * grid[1])
    torch.testing.assert_close(velocity(model, grid), velocity(make_base(), grid), **EXACT)


@pytest.mark.parametrize("grid", [(LARGEST + 1, 2), (2, LARGEST + 1)])
def test_a_side_beyond_the_position_table(grid: tuple[int, int]) -> None:
    with pytest.raises(
        UserError, match=rf"{grid[0]} x {grid[1]} tokens, but the position table has 8 x 8; .* up to 16"
    ):
        velocity(make_model(), grid, condition=condition(grid))


def test_a_size_that_patches_do_not_divide() -> None:
    sample = draw(2, 4, 8, 11, seed=1)
    with pytest.raises(UserError, match="8 x 11 is not a multiple of the patch size 2"):
        make_model()(**(inputs() | {"hidden_states": sample}), condition=sample)


@pytest.mark.parametrize("shape", [(2, 4, 12, 8), (2, 4, 8, 8), (1, 4, 8, 12), (2, 3, 8, 12)])
def test_a_condition_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"condition has shape .*, but hidden_states \[2, 4, 8, 12\]"):
        velocity(make_model(), condition=draw(*shape, seed=1))


@pytest.mark.parametrize("variant", ["r1", "v1"])
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(variant: str, tmp_path: Path) -> None:
    model = make_model(variant, started=True)
    model.save_pretrained(tmp_path)
    again, loaded = SD3ControlStreamTransformer2DModel.from_pretrained(
        tmp_path, torch_dtype=torch.float64, local_files_only=True, output_loading_info=True
    )
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    assert again.config.variant == variant
    weights = again.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    torch.testing.assert_close(velocity(again, condition=condition()), velocity(model, condition=condition()), **EXACT)


def test_an_unknown_variant() -> None:
    with pytest.raises(UserError, match="variant: got 'v2'; expected one of r1, v1"):
        from_sd3(make_base(), variant="v2")  # type: ignore[arg-type]


def test_a_new_model_has_a_stream_that_starts_at_zero_but_for_its_output() -> None:
    config = {**make_base().config, "variant": "r1"}
    assert_starts(SD3ControlStreamTransformer2DModel.from_config(config))
    with large_parameters_on_meta():
        model = SD3ControlStreamTransformer2DModel.from_config(config)
    fill_modules(model, draw_weights, lambda _: None, kept="pos_embed.proj")
    assert_starts(model)


def draw_weights(_: str, module: nn.Module) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def assert_starts(model: SD3ControlStreamTransformer2DModel) -> None:
    drawn = {name for name, parameter in model.named_parameters() if "control_" in name and parameter.any()}
    assert drawn == {name for name, _ in model.named_parameters() if "control_" in name and ".to_out." in name}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    model = make_model(started=True)
    expected = velocity(model, condition=condition())
    output = velocity(model.to(dtype), dtype=dtype, condition=condition(dtype=dtype))
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_half_precision_trains() -> None:
    model = make_model(started=True, dtype=torch.bfloat16)
    output = velocity(model, dtype=torch.bfloat16, condition=condition(dtype=torch.bfloat16))
    output.float().square().mean().backward()
    gradients = [model.get_parameter(name).grad for name in control_parameter_names(model)]
    assert all(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in gradients)


@torch.no_grad()
def test_the_attention_backend_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, chosen = make_model(started=True), []
    expected = velocity(model, condition=condition())
    dispatch = attention.dispatch_attention_fn

    def recorded(*tensors: Tensor, backend: AttentionBackendName | None, **settings: object) -> Tensor:
        chosen.append(backend)
        return dispatch(*tensors, backend=backend, **settings)

    monkeypatch.setattr(attention, "dispatch_attention_fn", recorded)
    with attention_backend("native"):  # restores the backend of the process, which set_attention_backend changes
        model.set_attention_backend("_native_math")
        output = velocity(model, condition=condition())
    assert set(chosen) == {AttentionBackendName._NATIVE_MATH}
    assert len(chosen) == LAYERS + len(DUAL_LAYERS)
    torch.testing.assert_close(output, expected, **EXACT)


@torch.no_grad()
def test_the_other_arguments_of_sd3_mean_what_they_mean_there() -> None:
    base, model = make_base(), make_model()
    residuals = [draw(2, TOKENS, WIDTH, seed=seed) for seed in (5, 6)]
    more = {
        "block_controlnet_hidden_states": residuals,
        "skip_layers": [1],
        "joint_attention_kwargs": {"scale": 1.0},
    }
    torch.testing.assert_close(velocity(model, **more), velocity(base, **more), **EXACT)
    assert isinstance(model(**inputs(), condition=condition(), return_dict=False), tuple)


@torch.no_grad()
def test_lora_layers_take_their_scale() -> None:
    peft = pytest.importorskip("peft")
    model = make_model(started=True)
    expected = velocity(model, condition=condition())
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False))
    assert (velocity(model, condition=condition()) - expected).abs().max() > 0.01
    output = velocity(model, condition=condition(), joint_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(output, expected, **EXACT)


def test_attention_arguments_that_have_no_effect_are_refused() -> None:
    with pytest.raises(UserError, match="joint_attention_kwargs: got ip_hidden_states; "):
        velocity(make_model(), joint_attention_kwargs={"ip_hidden_states": None})


def test_what_would_drop_the_stream_is_refused() -> None:
    model = make_model()
    with pytest.raises(
        UserError, match=r"needs its own processors, not JointAttnProcessor2_0; .*set_attention_backend"
    ):
        model.set_attn_processor(make_base().transformer_blocks[0].attn.processor)
    with pytest.raises(UserError, match="does not run fused projections"):
        model.fuse_qkv_projections()
    with pytest.raises(UserError, match=r"enable_forward_chunking\(chunk_size=4, dim=1\): the convolution"):
        model.enable_forward_chunking(4, dim=1)


# SD3.5-medium, whose transformer has 2243.2 M parameters; DiT4SR's is said to have 2716.8 M.
MEDIUM = {
    "sample_size": 128,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_number_of_parameters_of_sd35_medium_with_the_stream() -> None:
    with torch.device("meta"):
        base, model = SD3Transformer2DModel(**MEDIUM), SD3ControlStreamTransformer2DModel(**MEDIUM)
    linear = 1536 * 1536 + 1536
    convolution = 4 * 1536 * (9 + 1)
    assert count(base) == 2_243_171_520
    assert count(model) - count(base) == (24 + 13) * 4 * linear + 24 * convolution == 350_877_696
    # The published number is, to its last digit, that of four more such layers in each block with two attentions.
    assert round((count(model) + 13 * 4 * linear) / 1e6, 1) == 2716.8
