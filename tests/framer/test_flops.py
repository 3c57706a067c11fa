from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from framer.config.loading import build_config
from framer.config.training import TrainConfig
from framer.flops import FlopCounter, attention_flops, model_flops_per_sample

SIZES = {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 8}


def config(**architecture: object) -> TrainConfig:
    return build_config(
        TrainConfig,
        {
            "output_dir": "unused",
            "data": {"crop_size": 32},
            "model": {
                "architecture": {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 8} | architecture
            },
        },
        source="test",
    )


def by_hand(layers: int, width: int, tokens: int, text: int, *, dual: int, patch: int, channels: int) -> int:
    """Forward operations of one sample by the architecture: 2 a multiplication."""
    out = 3
    joint = tokens + text
    embed = 2 * tokens * width * channels * patch**2 + 2 * text * 32 * width + 2 * (288 * width + 2 * width**2)
    attention = 2 * 2 * joint**2 * width
    block = (
        2 * 6 * width**2 * 2  # modulation of image and text
        + 2 * 3 * joint * width**2
        + attention
        + 2 * joint * width**2
        + 2 * 8 * joint * width**2
    )
    twice = 2 * 3 * width**2 + 2 * 4 * tokens * width**2 + 2 * 2 * tokens**2 * width  # three more modulations
    # The last block's text ends with attention; its modulation is scale and shift alone.
    last = 2 * text * width**2 + 2 * 8 * text * width**2 + 2 * 4 * width**2
    head = 2 * 2 * width**2 + 2 * tokens * width * out * patch**2
    return embed + layers * block + dual * twice - last + head


@pytest.mark.parametrize("dual", [0, 2])
def test_model_flops_are_those_of_the_architecture(dual: int) -> None:
    planned = model_flops_per_sample(config(dual_attention_layers=list(range(dual))))
    assert planned == 3 * by_hand(4, 16, 64, 1, dual=dual, patch=4, channels=9)


def test_backward_pass_takes_twice_the_forward_pass_but_for_attention() -> None:
    factors = [torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)]
    with FlopCounter() as forward:
        product = factors[0] @ factors[1]
    with FlopCounter() as backward:
        product.sum().backward()
    assert (forward.total, backward.total) == (2 * 3 * 4 * 5, 2 * 2 * 3 * 4 * 5)
    q, k, v = (torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3))
    with FlopCounter() as counter:
        out = scaled_dot_product_attention(q, k, v)
        assert counter.total == attention_flops(q, k, v) == 2 * 2 * 2 * 6 * 6 * 8
        out.sum().backward()
    assert counter.total == 2 * 2 * 2 * 6 * 6 * 8 * 7 // 2


def test_model_flops_do_not_depend_on_recomputation_or_batch() -> None:
    plain = config()
    other = plain.model_copy(
        update={"training": plain.training.model_copy(update={"batch_size": 7, "precision": "bf16"})}
    )
    assert model_flops_per_sample(other) == model_flops_per_sample(plain)


def test_pretrained_model_is_planned_from_its_config() -> None:
    pretrained = build_config(TrainConfig, {"output_dir": "unused", "model": {"pretrained": "base"}}, source="test")
    assert model_flops_per_sample(pretrained) > 1e8
