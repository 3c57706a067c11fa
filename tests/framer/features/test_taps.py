from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from framer.errors import UserError
from framer.features import Capture, CaptureError, FeatureError, FeatureTap, adapter_for


def tap_of(model: nn.Module) -> FeatureTap:
    return FeatureTap(adapter_for(model))


def record(tap: FeatureTap, model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Capture]:
    with tap.record():
        prediction = model(**inputs).sample
    assert tap.capture is not None
    return prediction, tap.capture


def watch_blocks(model: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Image tokens that go into and come out of the blocks, by hooks."""
    into, out = [], []

    def before(_, args, kwargs):
        into.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    for block in model.transformer_blocks:
        block.register_forward_pre_hook(before, with_kwargs=True)
        block.register_forward_hook(lambda _, args, output: out.append(output[1]))
    return into, out


@pytest.mark.parametrize("checkpointing", [False, True])
def test_captures_the_very_tensors_that_flow_between_blocks(make_model, make_inputs, checkpointing):
    model = make_model(num_layers=4)
    if checkpointing:
        model.enable_gradient_checkpointing()
    flowing = []
    model.norm_out.register_forward_pre_hook(lambda _, args: flowing.append(args[0]))
    into, _ = watch_blocks(model)
    prediction, capture = record(tap_of(model), model, make_inputs())

    assert [feature.shape for feature in capture.features.values()] == [(2, 16, 4, 6)] * 4
    assert capture.grid == (1, 4, 6)
    assert capture.checkpointed is checkpointing
    for feature, tokens in zip(capture.features.values(), [*into[1:], flowing[0]], strict=True):
        assert feature.data_ptr() == tokens.data_ptr()
        assert torch.equal(feature.flatten(2).transpose(1, 2), tokens)
    assert torch.equal(prediction, make_model(num_layers=4)(**make_inputs()).sample)


def test_head_arguments_are_what_the_model_gave_its_head(make_model, make_inputs):
    model, inputs = make_model(), make_inputs()
    _, capture = record(tap_of(model), model, inputs)
    assert capture.head_arguments is not None
    (conditioning,) = capture.head_arguments.args
    assert torch.equal(conditioning, model.time_text_embed(inputs["timestep"], inputs["pooled_projections"]))


def gradients(model: nn.Module, inputs: dict[str, torch.Tensor], tap: FeatureTap) -> dict[str, torch.Tensor]:
    prediction, capture = record(tap, model, inputs)
    # A loss that saves tensors of its own from every feature, as FRAMER does.
    extra = sum(feature.float().tanh().square().mean() for feature in capture.features.values())
    (prediction.square().mean() + extra).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def reentrant(block: nn.Module, *args: object) -> object:
    return checkpoint(block, *args, use_reentrant=True)


@pytest.mark.parametrize("function", [None, reentrant, lambda block, *args: block(*args)])
@pytest.mark.parametrize("dual", [(), (0, 1)])
def test_gradients_do_not_depend_on_checkpointing(make_model, make_inputs, function, dual):
    config = {"dual_attention_layers": dual, "qk_norm": "rms_norm" if dual else None}
    expected_model, model = make_model(**config), make_model(**config)
    model.enable_gradient_checkpointing(function)
    expected = gradients(expected_model, make_inputs(), tap_of(expected_model))
    got = gradients(model, make_inputs(), tap_of(model))
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("early_stop", [True, False])
def test_recomputation_captures_nothing(make_model, make_inputs, early_stop):
    model = make_model()
    model.enable_gradient_checkpointing()
    runs = []
    model.transformer_blocks[1].register_forward_pre_hook(lambda *_: runs.append(1))
    tap = tap_of(model)
    with set_checkpoint_early_stop(early_stop), tap.record():
        model(**make_inputs()).sample.sum().backward()
        model.zero_grad()
    assert len(runs) == 2
    assert tap.capture is not None
    assert len(tap.capture.features) == 3


def test_users_checkpoint_function_runs_every_block_and_is_put_back(make_model, make_inputs):
    model = make_model()
    ran = []

    def mine(block, *args):
        ran.append(block)
        return checkpoint(block, *args, use_reentrant=False)

    model.enable_gradient_checkpointing(mine)
    record(tap_of(model), model, make_inputs())
    assert ran == list(model.transformer_blocks)
    assert model.gradient_checkpointing is True
    assert model._gradient_checkpointing_func is mine


def test_without_checkpointing_blocks_are_called_by_keyword_as_the_model_does(make_model, make_inputs):
    model = make_model()
    calls = []
    for block in model.transformer_blocks:
        block.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, set(kwargs))), with_kwargs=True)
    model(**make_inputs())
    own = calls.copy()
    calls.clear()
    record(tap_of(model), model, make_inputs())
    assert calls == own


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was(make_model, make_inputs, checkpointing, fails):
    model = make_model()
    if checkpointing:
        model.enable_gradient_checkpointing()
    before = dict(model.__dict__)
    hooks = hooks_of(model)
    tap = tap_of(model)

    def forward_then_fail() -> None:
        model(**make_inputs())
        raise KeyError("mine")

    if fails:
        with pytest.raises(KeyError, match="mine"), tap.record():
            forward_then_fail()
        assert tap.capture is None
    else:
        record(tap, model, make_inputs())
    assert model.__dict__ == before
    assert hooks_of(model) == hooks == 0
    # and what failed does not stand in the way of the next one
    record(tap, model, make_inputs())


def test_exception_inside_a_block_restores_the_model(make_model, make_inputs):
    model = make_model()
    inputs = make_inputs() | {"encoder_hidden_states": torch.zeros(2, 3, 9)}
    with pytest.raises(RuntimeError, match="shapes"), tap_of(model).record():
        model(**inputs)
    assert model.gradient_checkpointing is False
    assert model._gradient_checkpointing_func is None


def test_no_reference_is_kept_after_clear(make_model, make_inputs):
    model = make_model()
    tap = tap_of(model)
    _, capture = record(tap, model, make_inputs())
    alive = [weakref.ref(feature) for feature in capture.features.values()]
    del capture, _
    tap.clear()
    gc.collect()
    assert [tokens() for tokens in alive] == [None] * 3


@pytest.mark.parametrize("disabled", [torch.no_grad, torch.inference_mode])
def test_disabled_gradients_are_refused(make_model, disabled):
    model = make_model()
    with disabled(), pytest.raises(CaptureError, match="gradients disabled"), tap_of(model).record():
        pass
    assert model.gradient_checkpointing is False


def test_forward_without_gradients_inside_is_refused(make_model, make_inputs):
    model = make_model()
    with (
        pytest.raises(CaptureError, match="captured 0 features of SD3Transformer2DModel, which has 3"),
        tap_of(model).record(),
        torch.no_grad(),
    ):
        model(**make_inputs())


@pytest.mark.parametrize(("calls", "captured"), [(0, 0), (2, 6)])
def test_number_of_forwards_must_be_one(make_model, make_inputs, calls, captured):
    model = make_model()
    with pytest.raises(CaptureError, match=f"captured {captured} features"), tap_of(model).record():
        [model(**make_inputs()) for _ in range(calls)]


def test_skipped_layers_are_refused(make_model, make_inputs):
    model = make_model()
    with (
        pytest.raises(CaptureError, match=r"captured 2 features .* 3 blocks.*skip_layers"),
        tap_of(model).record(),
    ):
        model(**make_inputs(), skip_layers=[1])


def test_recording_is_not_nested(make_model, make_inputs):
    model = make_model()
    tap = tap_of(model)
    with tap.record():
        with pytest.raises(CaptureError, match="still open"), tap.record():
            pass
        with pytest.raises(CaptureError, match="still open"):
            tap.clear()
        model(**make_inputs())
    assert tap.capture is not None
    assert model.gradient_checkpointing is False


def test_calling_forward_directly_is_refused(make_model, make_inputs):
    model = make_model()
    with pytest.raises(CaptureError, match=r"model\.forward"), tap_of(model).record():
        model.forward(**make_inputs())


@pytest.mark.parametrize(("size", "grid"), [((6, 10), (3, 5)), ((9, 13), (4, 6)), ((12, 4), (6, 2))])
def test_grid_of_a_positional_input_of_any_size(make_model, make_inputs, size, grid):
    model, inputs = make_model(), make_inputs(*size)
    tap = tap_of(model)
    with tap.record():
        model(inputs.pop("hidden_states"), **inputs)
    assert tap.capture is not None
    assert tap.capture.grid == (1, *grid)


def test_tokens_that_do_not_fill_the_grid_are_refused_with_both_numbers(make_model, make_inputs):
    model = make_model()
    model.transformer_blocks[1].register_forward_hook(lambda _, args, output: (output[0], output[1][:, :-1]))
    model.norm_out.register_forward_hook(lambda _, args, out: torch.nn.functional.pad(out, (0, 0, 0, 1)))
    with pytest.raises(FeatureError) as caught, tap_of(model).record():
        model(**make_inputs())
    message = str(caught.value)
    assert "transformer_blocks.1" in message
    assert "[2, 23, 16]" in message
    assert "4 x 6 = 24" in message
    assert isinstance(caught.value, UserError)


def test_reentrant_checkpointing_that_cuts_the_gradient_is_refused(make_model, make_inputs):
    model = make_model()
    model.requires_grad_(False)
    model.transformer_blocks.requires_grad_(True)
    model.enable_gradient_checkpointing(reentrant)
    with (
        pytest.warns(UserWarning, match="None of the inputs have requires_grad"),
        pytest.raises(CaptureError, match=r"transformer_blocks\.0 has parameters that train.*eentrant"),
        tap_of(model).record(),
    ):
        model(**make_inputs())


def test_frozen_first_blocks_are_captured(make_model, make_inputs):
    model = make_model()
    model.requires_grad_(False)
    model.transformer_blocks[1].requires_grad_(True)
    _, capture = record(tap_of(model), model, make_inputs())
    assert [feature.requires_grad for feature in capture.features.values()] == [False, True, True]


def test_two_taps_on_one_model_both_capture(make_model, make_inputs):
    model = make_model()
    outer, inner = tap_of(model), tap_of(model)
    with outer.record(), inner.record():
        model(**make_inputs())
    assert outer.capture is not None
    assert inner.capture is not None
    for number, feature in outer.capture.features.items():
        assert feature.data_ptr() == inner.capture.features[number].data_ptr()
    assert model.gradient_checkpointing is False


def test_bfloat16(make_model, make_inputs):
    model = make_model().bfloat16()
    inputs = {k: v.bfloat16() if k != "timestep" else v for k, v in make_inputs().items()}
    _, capture = record(tap_of(model), model, inputs)
    assert {feature.dtype for feature in capture.features.values()} == {torch.bfloat16}
    assert capture.autocast_dtype is None


def test_autocast_is_noted(make_model, make_inputs):
    model = make_model()
    tap = tap_of(model)
    with tap.record(), torch.autocast("cpu", torch.bfloat16):
        model(**make_inputs())
    assert tap.capture is not None
    assert tap.capture.autocast_dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("compiled", ["wrapped", "in place"])
def test_whole_graph_compilation(make_model, make_inputs, checkpointing, compiled):
    torch._dynamo.reset()
    expected_model, model = make_model(), make_model()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    run: nn.Module = model
    if checkpointing:
        model.enable_gradient_checkpointing()
    if compiled == "wrapped":
        run = torch.compile(model, fullgraph=True, backend=count)
    else:
        model.compile(fullgraph=True, backend=count)
    tap = tap_of(run)
    step = partial(gradients, run, make_inputs(), tap)
    expected = gradients(expected_model, make_inputs(), tap_of(expected_model))
    for _ in range(2):
        model.zero_grad()
        step()
        got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert len(graphs) == 1
