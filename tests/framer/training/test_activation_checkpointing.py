"""Which blocks are recomputed, what is kept meanwhile, and where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sd3 import model_inputs
from torch import Tensor

from framer import Framer
from framer.config.engine import ActivationCheckpointingConfig
from framer.config.model import ModelConfig
from framer.errors import ConfigError
from framer.models.build import build_model
from framer.training.activation_checkpointing import enable_activation_checkpointing

LAYERS = 6


def _model() -> Any:
    config = ModelConfig(architecture={"num_layers": LAYERS, "num_attention_heads": 2, "attention_head_dim": 8})  # type: ignore[arg-type]
    model = build_model(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def _step(model: Any) -> tuple[list[int], dict[str, Tensor]]:
    """How often each block ran in forward and backward, and the gradients of the noise loss and FRAMER."""
    runs = [0] * LAYERS

    def count(i: int) -> Any:
        def hook(*_: object) -> None:
            runs[i] += 1

        return hook

    handles = [block.register_forward_pre_hook(count(i)) for i, block in enumerate(model.transformer_blocks)]
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 3, 32, 32, generator=generator)
    condition = torch.randn(2, 6, 32, 32, generator=generator)
    framer = Framer(model)
    with framer.capture():
        output = model(**model_inputs(model, sample, condition, torch.tensor([300.0, 700.0]))).sample
    (output.square().mean() + framer.loss().total).backward()
    for handle in handles:
        handle.remove()
    return runs, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", ["torch", "deepspeed"])
@pytest.mark.parametrize(
    ("settings", "recomputed"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"every": 2}, [0, 2, 4]),
        ({"every": 4}, [0, 4]),
        ({"blocks": "transformer_blocks.[1-4]"}, [1, 2, 3, 4]),
        ({"blocks": "transformer_blocks.[1-4]", "every": 3}, [1, 4]),
    ],
)
def test_the_chosen_blocks_run_twice_and_gradients_stay(
    backend: str, settings: dict[str, Any], recomputed: list[int]
) -> None:
    _, expected = _step(_model())
    model = _model()
    config = ActivationCheckpointingConfig(backend=backend, **settings)  # type: ignore[arg-type]
    names = enable_activation_checkpointing(model, config)
    assert names == tuple(f"transformer_blocks.{i}" for i in recomputed)
    runs, gradients = _step(model)
    assert runs == [2 if i in recomputed else 1 for i in range(LAYERS)]
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6)


def test_off_changes_nothing() -> None:
    model = _model()
    assert enable_activation_checkpointing(model, ActivationCheckpointingConfig()) == ()
    assert _step(model)[0] == [1] * LAYERS


def test_cpu_offload_moves_the_blocks_inputs_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[torch.Size] = []
    original = torch.autograd.graph.save_on_cpu.__init__

    def recording(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        pack = self.pack_hook

        def spy(tensor: Tensor) -> Any:
            packed.append(tensor.shape)
            return pack(tensor)

        self.pack_hook = spy

    monkeypatch.setattr(torch.autograd.graph.save_on_cpu, "__init__", recording)
    _, expected = _step(_model())
    model = _model()
    enable_activation_checkpointing(model, ActivationCheckpointingConfig(backend="torch", cpu_offload=True))
    _, gradients = _step(model)
    # Image tokens, text tokens and the conditioning vector of each block.
    assert sorted(packed) == sorted([torch.Size([2, 64, 16]), torch.Size([2, 1, 16]), torch.Size([2, 16])] * LAYERS)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6)


def test_a_pattern_that_matches_no_block() -> None:
    with pytest.raises(ConfigError, match=r"'blocks.\*' matches none of the blocks transformer_blocks.0 to"):
        enable_activation_checkpointing(_model(), ActivationCheckpointingConfig(backend="torch", blocks="blocks.*"))
