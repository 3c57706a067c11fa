"""docs/backbones.md says what the classes do here, and its example runs."""

from __future__ import annotations

import re
from typing import Any

import diffusers
import pytest
import torch
from backbone_table import (
    BEGIN,
    CASES,
    COMMAND,
    END,
    LEFT_OUT,
    OTHER_UNETS,
    PAGE,
    REMARKS,
    UNETS,
    page_with,
    row_of,
    rows_of,
    tables,
)
from torch import Tensor, nn

from framer import Framer
from framer.features import (
    CaptureError,
    FeatureError,
    Stack,
    TransformerLayout,
    UnsupportedModelError,
    adapters,
    patchified,
    register_layout,
)

OUTDATED = f"docs/backbones.md is out of date: run {COMMAND}"


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))


@pytest.mark.parametrize("name", CASES)
def test_the_page_says_what_a_step_shows(name):
    assert rows_of(PAGE.read_text()).get(name) == row_of(CASES[name]), OUTDATED


def test_the_rest_of_the_tables_is_up_to_date():
    page = PAGE.read_text()
    rows = rows_of(page)
    assert rows.keys() == CASES.keys(), OUTDATED
    assert page == page_with(tables(rows), page), OUTDATED


def test_writing_the_page_again_keeps_what_is_around_the_tables():
    page = f"before\n{BEGIN}\n\nold\n\n{END}\nafter\n"
    assert page_with("new", page) == page.replace("old", "new")
    assert page_with("new", page_with("new", page)) == page_with("new", page)


def test_every_unet_of_diffusers_is_taken_through_a_step_or_left_out_with_a_reason():
    exported = {name for name in dir(diffusers) if "UNet" in name or "UVit" in name}
    assert exported == {case.name for case in UNETS} | OTHER_UNETS.keys()


def test_no_class_that_is_left_out_has_an_adapter_and_every_remark_is_of_a_class():
    for name in LEFT_OUT.keys() - {"MiniMaxMusic3RVQDepthDecoder"}:
        cls = getattr(diffusers, name, None) or getattr(diffusers.models.transformers, name)
        assert not {base.__name__ for base in cls.__mro__} & adapters._ADAPTERS.keys(), name
    assert REMARKS.keys() <= CASES.keys()


def example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "class MyTransformer" in block]
    return code


def test_the_example_of_an_own_backbone_trains_its_blocks():
    torch.manual_seed(0)
    ran: dict[str, Any] = {}
    exec(compile(example(), str(PAGE), "exec"), ran)
    assert ran["prediction"].shape == (2, 3, 32, 48)
    assert torch.isfinite(ran["loss"])
    assert ran["framer"].layer_names == ("blocks.0", "blocks.1", "blocks.2")
    for block in ran["model"].blocks:
        assert all(parameter.grad.any() for parameter in block.parameters())


class Own(nn.Module):
    """A model of blocks that keep their tokens, four pixels' side each."""

    def __init__(self, blocks: int = 4, extra: int = 0) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(blocks)])
        self.extra = extra

    def forward(self, sample: Tensor) -> Tensor:
        tokens = self.embed(sample).flatten(2).transpose(1, 2)
        tokens = nn.functional.pad(tokens, (0, 0, 0, self.extra))
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return tokens


def declare(path: str = "blocks", patch: str | int = 4) -> None:
    register_layout("Own", TransformerLayout(stacks=(Stack(path),), grid=patchified("sample", patch=patch)))


def captured(model: nn.Module, **size: int) -> Framer:
    framer = Framer(model)
    with framer.capture():
        model(torch.randn(2, 3, size.get("rows", 16), size.get("columns", 24)))
    return framer


def test_an_own_class_that_is_not_declared_is_refused():
    with pytest.raises(UnsupportedModelError, match="register_layout\\('Own'"):
        Framer(Own())


def test_a_model_without_blocks_where_they_were_declared_is_refused():
    declare("layers")
    with pytest.raises(UnsupportedModelError, match=r"Own has no blocks at 'layers'.*its lists of modules: blocks"):
        Framer(Own())


@pytest.mark.parametrize("blocks", [0, 2])
def test_a_model_with_too_few_blocks_is_refused(blocks):
    declare()
    with pytest.raises(UnsupportedModelError, match=f"the model has {blocks} blocks; FRAMER needs 3 or more"):
        Framer(Own(blocks))


@pytest.mark.parametrize(("patch", "extra", "tokens"), [(2, 0, "8 x 12 = 96"), (4, 1, "4 x 6 = 24")])
def test_a_grid_that_does_not_match_the_tokens_is_refused_with_both_numbers(patch, extra, tokens):
    declare(patch=patch)
    with pytest.raises(FeatureError, match=rf"blocks\.0 gave image tokens of shape \[2, {24 + extra}, 8\].*{tokens}"):
        captured(Own(extra=extra))


def test_a_patch_that_is_named_without_a_config_is_refused():
    declare(patch="patch_size")
    with pytest.raises(FeatureError, match=r"Own\.config is None, not a mapping that tells patch_size: .*patch=2"):
        captured(Own())


def test_a_patch_that_is_named_is_read_from_any_mapping():
    declare(patch="patch_size")
    model = Own()
    model.config = {"patch_size": 4}
    assert torch.isfinite(captured(model).loss().total)


def test_compiling_a_whole_model_past_its_recomputed_blocks_is_refused():
    from framer.config.engine import ActivationCheckpointingConfig
    from framer.training.activation_checkpointing import enable_activation_checkpointing

    torch._dynamo.reset()
    declare()
    model = Own()
    enable_activation_checkpointing(model, ActivationCheckpointingConfig(backend="torch"))
    with pytest.raises(CaptureError, match="captured 0 features of Own, which has 4 blocks"):
        captured(torch.compile(model, backend="eager"))
