from __future__ import annotations

import pytest

from framer.config.model import ModelConfig
from framer.errors import ConfigError
from framer.models.build import build_model
from framer.models.trainable import freeze_the_rest, trainable_parameters

ARCHITECTURE = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "dual_attention_layers": [0]}


def _names(trainable: object) -> tuple[frozenset[str], set[str]]:
    config = ModelConfig(architecture=ARCHITECTURE, trainable=trainable)  # type: ignore[arg-type]
    model = build_model(config, seed=0)
    return trainable_parameters(model, config), {name for name, _ in model.named_parameters()}


def test_all() -> None:
    selected, names = _names("all")
    assert selected == names


def test_attention_is_every_projection_of_both_attentions_and_nothing_else() -> None:
    selected, names = _names("attention")
    assert selected == {name for name in names if ".attn." in name or ".attn2." in name}
    assert any(".attn2." in name for name in selected)
    assert all(name.startswith("transformer_blocks.") for name in selected)


def test_control_is_where_the_low_resolution_image_enters() -> None:
    assert _names("control")[0] == {"pos_embed.proj.weight", "pos_embed.proj.bias"}


def test_sets_and_patterns_add_up() -> None:
    selected, names = _names(["control", "transformer_blocks.1.ff.*"])
    assert selected == {n for n in names if n.startswith(("pos_embed.proj.", "transformer_blocks.1.ff."))}


@pytest.mark.parametrize("entry", ["attn", "transformer_blocks.9.*", "Control"])
def test_what_matches_nothing_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=rf"model.trainable: '{entry.replace('*', '.')}' matches none of the model's"):
        _names(["control", entry])


def test_the_rest_is_frozen() -> None:
    config = ModelConfig(architecture=ARCHITECTURE, trainable=["attention"])
    model = build_model(config, seed=0)
    selected = trainable_parameters(model, config)
    freeze_the_rest(model, selected)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == selected
