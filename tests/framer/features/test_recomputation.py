"""Calls that run under a checkpoint: what runs again, with which arguments, and what other wrappers do to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from unet_models import STUDENTS, unet, unet_inputs

from framer import Framer
from framer.config.distillation import FramerConfig
from framer.config.engine import ActivationCheckpointingConfig
from framer.features import FeatureTap, adapter_for, attach_heads
from framer.features.recomputation import is_compiled, is_recomputed, recompute
from framer.training.activation_checkpointing import enable_activation_checkpointing

BY_TORCH = ActivationCheckpointingConfig(backend="torch")


def not_reentrant(function: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(function, *inputs, use_reentrant=False)


class Block(nn.Module):
    """Counts its passes, and keeps what it was given beside the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.given.append((args, kwargs))
        return self.linear(tokens).tanh()


def test_both_passes_get_the_arguments_as_they_were_given_and_run_the_hooks_before_them():
    block, hooks = Block(), []
    block.register_forward_pre_hook(lambda *_: hooks.append(1))
    recompute(block, not_reentrant)
    condition, mask = torch.ones(4), object()
    block(torch.ones(2, 4), condition, mask=mask, scale=None).sum().backward()
    assert len(block.given) == len(hooks) == 2
    for args, kwargs in block.given:
        assert args[0] is condition
        assert kwargs == {"mask": mask, "scale": None}


def test_a_block_called_by_keyword_alone():
    block, plain = Block(), Block()
    plain.load_state_dict(block.state_dict())
    recompute(block, not_reentrant)
    tokens = torch.randn(2, 4, requires_grad=True)
    again = tokens.detach().requires_grad_()
    block(tokens=tokens).square().sum().backward()
    plain(tokens=again).square().sum().backward()
    assert len(block.given) == 2
    assert torch.equal(tokens.grad, again.grad)


def test_nothing_runs_twice_without_gradients():
    block = Block()
    recompute(block, lambda *_: pytest.fail("checkpointed"))
    with torch.no_grad():
        block(torch.ones(2, 4))
    assert len(block.given) == 1


def test_a_second_checkpoint_replaces_the_first():
    block, ran = Block(), []

    def named(name: str) -> Callable[..., Any]:
        return lambda function, *inputs: (ran.append(name), not_reentrant(function, *inputs))[1]

    recompute(block, named("first"))
    recompute(block, named("second"))
    block(torch.ones(2, 4)).sum().backward()
    assert ran == ["second"]
    assert len(block.given) == 2


def test_a_copy_is_a_plain_module_of_its_own():
    block = Block()
    recompute(block, not_reentrant)
    other = copy.deepcopy(block)
    other(torch.ones(2, 4)).sum().backward()
    assert (is_recomputed(block), is_recomputed(other)) == (True, False)
    assert (len(block.given), len(other.given)) == (0, 1)


def test_compiled_and_recomputed_are_told_apart():
    block, compiled = Block(), Block()
    compiled.compile(backend="eager")
    assert (is_compiled(block), is_compiled(compiled)) == (False, True)
    for module in (block, compiled):
        recompute(module, not_reentrant)
    assert (is_compiled(block), is_compiled(compiled)) == (False, True)


def gradients(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
    tap = FeatureTap(adapter_for(model))
    with tap.record():
        output = model(**inputs).sample
    assert tap.capture is not None
    (output.square().mean() + sum(f.tanh().square().mean() for f in tap.capture.features.values())).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_recomputation_within_an_open_recording_captures_nothing(make_model, make_inputs):
    model = make_model()
    enable_activation_checkpointing(model, BY_TORCH)
    tap = FeatureTap(adapter_for(model))
    with tap.record():
        model(**make_inputs()).sample.sum().backward()
    assert tap.capture is not None
    assert (len(tap.capture.features), tap.capture.checkpointed) == (3, True)


def test_it_takes_the_place_of_diffusers_checkpointing(make_model, make_inputs):
    model, runs = make_model(), []
    model.enable_gradient_checkpointing()
    enable_activation_checkpointing(model, BY_TORCH)
    model.transformer_blocks[1].register_forward_pre_hook(lambda *_: runs.append(1))
    assert not model.is_gradient_checkpointing
    assert_same(gradients(model, make_inputs()), gradients(make_model(), make_inputs()))
    assert len(runs) == 2


def test_compiled_blocks_are_recomputed_as_a_whole(make_model, make_inputs):
    torch._dynamo.reset()
    model, runs = make_model(), []

    def backend(graph: Any, _: Any) -> Any:
        def run(*args: Any) -> Any:
            runs.append(1)
            return graph.forward(*args)

        return run

    for block in model.transformer_blocks:
        block.compile(backend=backend)
    enable_activation_checkpointing(model, BY_TORCH)
    for expected_runs in (2 * 3, 4 * 3):
        model.zero_grad()
        assert_same(gradients(model, make_inputs()), gradients(make_model(), make_inputs()))
        assert len(runs) == expected_runs


def heads_step(model: nn.Module) -> dict[str, Tensor]:
    framer = Framer(model, FramerConfig(fam=False))
    with framer.capture():
        output = model(**unet_inputs()).sample
    (output.square().mean() + framer.loss().total).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("by", ["parts", "diffusers"])
def test_as_many_parts_of_a_unet_are_recomputed_as_by_diffusers_and_the_middles_first_resnet(by):
    model = unet()
    attach_heads(model)
    if by == "parts":
        enable_activation_checkpointing(model, BY_TORCH)
    else:
        model.enable_gradient_checkpointing()
    runs: dict[str, int] = {}
    for name, module in model.named_modules():
        if type(module).__name__ in ("ResnetBlock2D", "BasicTransformerBlock", "Transformer2DModel", "Downsample2D"):
            runs[name] = 0
            module.register_forward_pre_hook(lambda *_, name=name: runs.update({name: runs[name] + 1}))
    heads_step(model)
    for name, times in runs.items():
        part = name.split(".")[-2] in ("resnets", "transformer_blocks")
        never = by == "diffusers" and name == "mid_block.resnets.0"
        assert times == (2 if part and not never else 1), name


@pytest.mark.slow
def test_compiled_stages_of_a_unet_are_recomputed_as_a_whole():
    torch._dynamo.reset()
    model, expected = unet(), unet()
    for each in (model, expected):
        attach_heads(each)
    for block in adapter_for(model).blocks:
        block.compile(backend="eager")
    assert enable_activation_checkpointing(model, BY_TORCH) == STUDENTS["sd15"]
    assert all(is_recomputed(model.get_submodule(name)) for name in STUDENTS["sd15"])
    assert_same(heads_step(model), heads_step(expected))
