from __future__ import annotations

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from framer.errors import UserError
from framer.features import TransformerAdapter, UnsupportedModelError, adapter_for, adapters, register_adapter
from framer.features.adapters.base import HeadArguments
from framer.features.adapters.catalogue import LAYOUTS


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))


class Wrapper(nn.Module):
    """As DeepSpeedEngine and DistributedDataParallel: keeps the model as ``module``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def test_finds_the_model_and_names_its_blocks(make_model):
    model = make_model(num_layers=4)
    adapter = adapter_for(model)
    assert isinstance(adapter, TransformerAdapter)
    assert adapter.block_names == tuple(f"transformer_blocks.{i}" for i in range(4))
    assert list(adapter.blocks) == list(model.transformer_blocks)


@pytest.mark.parametrize("wrap", [Wrapper, compiled, lambda model: Wrapper(compiled(Wrapper(model)))])
def test_unwraps(make_model, wrap):
    model = make_model()
    adapter = adapter_for(wrap(model))
    assert adapter.model is model
    assert adapter.block_names[0] == "transformer_blocks.0"


def test_subclass_uses_the_adapter_of_its_base(make_model):
    class Mine(SD3Transformer2DModel):
        pass

    model = make_model()
    model.__class__ = Mine
    assert adapter_for(model).model is model


def test_unknown_model_is_refused_with_what_is_known_and_what_to_do():
    with pytest.raises(UnsupportedModelError) as caught:
        adapter_for(Wrapper(nn.Linear(2, 2)))
    message = str(caught.value)
    assert "Wrapper around Linear" in message
    assert "register_layout('Linear'" in message
    assert isinstance(caught.value, UserError)


def test_object_that_is_no_module_is_refused():
    with pytest.raises(UnsupportedModelError, match="does not know where str keeps"):
        adapter_for("stabilityai/stable-diffusion-3")  # type: ignore[arg-type]


@pytest.mark.usefixtures("registry")
def test_declared_adapter_is_found(make_model):
    class MyTransformer(nn.Module):
        pass

    class MyAdapter(TransformerAdapter):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model, LAYOUTS["SD3Transformer2DModel"])

    register_adapter("MyTransformer", MyAdapter)
    model = MyTransformer()
    model.transformer_blocks = nn.ModuleList([nn.Identity()])
    assert isinstance(adapter_for(model), MyAdapter)
    assert type(adapter_for(make_model())) is TransformerAdapter


def test_prediction_of_the_last_tokens_is_the_models_own(make_model, make_inputs):
    model, inputs = make_model(out_channels=3), make_inputs()
    seen = {}
    model.norm_out.register_forward_pre_hook(lambda _, args: seen.update(tokens=args[0], temb=args[1]))
    expected = model(**inputs).sample
    adapter = adapter_for(model)
    grid = adapter.token_grid(inputs)
    feature = adapter.to_map(2, seen["tokens"], inputs, grid)
    predicted = adapter.predict(feature, HeadArguments((seen["temb"],), {}), grid)
    assert predicted.shape == (2, 3, 8, 12)
    assert torch.equal(predicted, expected)
