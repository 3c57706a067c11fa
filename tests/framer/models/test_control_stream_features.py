"""Features of the blocks with the low-resolution stream, and recomputing them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from framer import Framer
from framer.config.engine import ActivationCheckpointingConfig
from framer.features import FeatureTap, adapter_for
from framer.models.control_stream import SD3ControlStreamTransformer2DModel
from framer.training.activation_checkpointing import enable_activation_checkpointing
from tests.framer.models.control_stream_cases import GRID, LAYERS, WIDTH, condition, make_model, velocity


def test_the_tap_sees_the_noisy_tokens() -> None:
    model = make_model(started=True)
    adapter = adapter_for(model)
    seen: list[Tensor] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    tap = FeatureTap(adapter)
    with tap.record():
        output = velocity(model, condition=condition())
    capture = tap.capture
    assert capture is not None
    assert capture.grid == (1, *GRID)
    assert [feature.shape for feature in capture.features.values()] == [(2, WIDTH, *GRID)] * LAYERS
    for feature, tokens in zip(capture.features.values(), seen, strict=True):
        assert torch.equal(feature.flatten(2).transpose(1, 2), tokens)
    assert capture.head_arguments is not None
    prediction = adapter.predict(capture.features[LAYERS - 1], capture.head_arguments, capture.grid)
    torch.testing.assert_close(prediction, output, rtol=0, atol=1e-12)


def step(model: SD3ControlStreamTransformer2DModel) -> tuple[int, dict[str, Tensor]]:
    """How often the first block ran, and the gradients of the noise loss and FRAMER."""
    runs: list[int] = []
    handle = model.transformer_blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    framer = Framer(model)
    with framer.capture():
        output = velocity(model, dtype=torch.float32, condition=condition(dtype=torch.float32))
    (output.square().mean() + framer.loss().total).backward()
    handle.remove()
    return len(runs), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", ["torch", "deepspeed"])
def test_framer_trains_the_stream_and_recomputed_blocks_give_the_same_gradients(backend: str) -> None:
    runs, expected = step(make_model(started=True, dtype=torch.float32).train())
    assert runs == 1
    assert all(gradient.any() for gradient in expected.values())
    model = make_model(started=True, dtype=torch.float32).train()
    enable_activation_checkpointing(model, ActivationCheckpointingConfig(backend=backend))  # type: ignore[arg-type]
    runs, recomputed = step(model)
    assert runs == 2
    assert recomputed.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7)
