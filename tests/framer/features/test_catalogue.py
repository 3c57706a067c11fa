from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models import transformers
from tiny_transformers import NOT_IMAGES, TINY, TinyTransformer, outputs
from torch import Tensor, nn

from framer.config.engine import ActivationCheckpointingConfig
from framer.errors import ConfigError
from framer.features import FeatureTap, adapter_for
from framer.features.adapters import TransformerAdapter
from framer.features.adapters.base import HeadArguments
from framer.features.adapters.catalogue import LAYOUTS
from framer.training.activation_checkpointing import enable_activation_checkpointing

every_transformer = pytest.mark.parametrize("tiny", TINY.values(), ids=TINY.keys())


def adapter_of(model: nn.Module) -> TransformerAdapter:
    adapter = adapter_for(model)
    assert isinstance(adapter, TransformerAdapter)
    return adapter


def arguments_of(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    return dict(inspect.signature(model.forward).bind(**inputs).arguments)


@contextmanager
def hooks_that_keep_outputs(adapter: TransformerAdapter) -> Iterator[list[Any]]:
    """What every block returns, by plain hooks, in the order of the calls."""
    kept: list[Any] = []
    handles = [block.register_forward_hook(lambda _, args, output: kept.append(output)) for block in adapter.blocks]
    yield kept
    for handle in handles:
        handle.remove()


def block_maps(model: nn.Module, inputs: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
    """Every block's feature map, and the model's output."""
    adapter, arguments = adapter_of(model), arguments_of(model, inputs)
    with hooks_that_keep_outputs(adapter) as kept:
        output = outputs(model, inputs)
    grid = adapter.token_grid(arguments)
    features = [adapter.feature(number, value) for number, value in enumerate(kept)]
    return [adapter.to_map(number, feature, arguments, grid) for number, feature in enumerate(features)], output


def first_blocks(adapter: TransformerAdapter) -> list[int]:
    """Numbers of the blocks that begin a stack."""
    numbers, number = [], 0
    for stack in adapter.layout.stacks:
        numbers.append(number)
        number += len(adapter.model.get_submodule(stack.path))
    return numbers


def test_every_transformer_that_diffusers_exports_is_built_or_left_out_with_a_reason():
    exported = {
        name for name, value in vars(transformers).items() if isinstance(value, type) and issubclass(value, nn.Module)
    }
    assert TINY.keys() | NOT_IMAGES.keys() == exported
    assert not TINY.keys() & NOT_IMAGES.keys()


@every_transformer
def test_blocks_run_in_the_declared_order_and_give_maps_of_the_image(tiny: TinyTransformer):
    model, inputs = tiny.build(), tiny.inputs(2)
    assert tiny.name in LAYOUTS
    adapter = adapter_of(model)
    ran: list[nn.Module] = []
    for block in adapter.blocks:
        block.register_forward_hook(lambda block, args, output: ran.append(block))
    maps, output = block_maps(model, inputs)
    assert ran == list(adapter.blocks)
    assert len(maps) >= 4
    assert all(len(model.get_submodule(stack.path)) >= 2 for stack in adapter.layout.stacks)
    assert adapter.token_grid(arguments_of(model, inputs)) == tiny.grid
    frames, height, width = tiny.grid
    assert {map_.shape for map_ in maps} == {(2 * frames, maps[0].shape[1], height, width)}

    output.square().mean().backward()
    for name, block in zip(adapter.block_names, adapter.blocks, strict=True):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in block.parameters()), name


@every_transformer
def test_a_changed_patch_changes_its_own_token_most(tiny: TinyTransformer):
    model = tiny.build().eval()
    _, rows, columns = tiny.grid
    with torch.no_grad():
        expected, _ = block_maps(model, tiny.inputs(2))
        for row, column in [(0, 0), (0, columns - 1), (1, 2), (rows - 1, 1), (rows - 1, columns - 1)]:
            inputs = tiny.inputs(2)
            tiny.change(inputs, row, column)
            changed, _ = block_maps(model, inputs)
            for number in first_blocks(adapter_of(model)):
                distance = (changed[number] - expected[number]).norm(dim=1).flatten(1)
                assert distance.argmax(1).tolist() == [row * columns + column] * 2


WITH_HEAD = [tiny for tiny in TINY.values() if LAYOUTS[tiny.name].head is not None]


@pytest.mark.parametrize("tiny", WITH_HEAD, ids=lambda tiny: tiny.name)
def test_head_of_the_last_block_gives_the_models_own_output(tiny: TinyTransformer):
    model, inputs = tiny.build().eval(), tiny.inputs(2)
    adapter = adapter_of(model)
    seen: list[HeadArguments] = []
    assert adapter.head_module is not None
    adapter.head_module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(HeadArguments(args[1:], kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        maps, output = block_maps(model, inputs)
        grid = adapter.token_grid(arguments_of(model, inputs))
        predicted = adapter.predict(maps[-1], seen[0], grid)
    torch.testing.assert_close(predicted, tiny.prediction(output), rtol=1e-5, atol=1e-5)


def step(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Output, features and gradients of a loss of both, through the tap."""
    tap = FeatureTap(adapter_for(model))
    torch.manual_seed(0)
    with tap.record():
        output = outputs(model, inputs)
    assert tap.capture is not None
    features = list(tap.capture.features.values())
    (output.square().mean() + sum(feature.tanh().square().mean() for feature in features)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), [feature.detach() for feature in features], gradients


def by_diffusers(model: Any) -> None:
    model.enable_gradient_checkpointing()


def by_framer(model: nn.Module) -> None:
    enable_activation_checkpointing(model, ActivationCheckpointingConfig(backend="torch"))


# Diffusers 0.42.1: two classes cannot recompute; one hands over keywords that diffusers' own function does not take.
REFUSED = [
    ("HunyuanDiT2DModel", by_diffusers, ValueError, "does not support gradient checkpointing"),
    ("HunyuanDiT2DModel", by_framer, ConfigError, "does not recompute blocks of HunyuanDiT2DModel"),
    ("LuminaNextDiT2DModel", by_diffusers, ValueError, "does not support gradient checkpointing"),
    ("LuminaNextDiT2DModel", by_framer, ConfigError, "does not recompute blocks of LuminaNextDiT2DModel"),
    ("HunyuanImageTransformer2DModel", by_diffusers, TypeError, "unexpected keyword argument"),
]
# Blocks that their model calls without a checkpoint in any case.
NEVER_RECOMPUTED = {"Lumina2Transformer2DModel": {"noise_refiner.0", "noise_refiner.1"}}


RECOMPUTED = [
    pytest.param(tiny, enable, id=f"{tiny.name}-{enable.__name__}")
    for tiny in TINY.values()
    for enable in (by_diffusers, by_framer)
    if (tiny.name, enable) not in [(name, function) for name, function, *_ in REFUSED]
]


@pytest.mark.parametrize(("tiny", "enable"), RECOMPUTED)
def test_checkpointing_changes_neither_output_nor_features_nor_gradients(tiny: TinyTransformer, enable):
    output, features, gradients = step(tiny.build(), tiny.inputs(2))
    model = tiny.build()
    enable(model)
    runs: Counter[str] = Counter()
    for name, block in zip(adapter_of(model).block_names, adapter_of(model).blocks, strict=True):
        block.register_forward_pre_hook(lambda *_, name=name: runs.update([name]))
    got_output, got_features, got_gradients = step(model, tiny.inputs(2))
    assert {name for name, times in runs.items() if times != 2} == NEVER_RECOMPUTED.get(tiny.name, set())
    assert torch.equal(got_output, output)
    for got, expected in zip(got_features, features, strict=True):
        assert torch.equal(got, expected)
    assert got_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(got_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("name", "enable", "error", "message"), REFUSED)
def test_classes_that_cannot_recompute_are_refused(name, enable, error, message):
    model, inputs = TINY[name].build(), TINY[name].inputs(1)

    def run() -> None:
        enable(model)
        outputs(model, inputs)

    with pytest.raises(error, match=message):
        run()
