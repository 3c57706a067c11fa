"""Loading weights that have the published layout, and weights that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from framer.errors import UserError
from framer.models.control_stream import PUBLISHED_NAMES, Variant, control_parameter_names, load_dit4sr
from framer.models.weights import WEIGHTS_FILE
from tests.framer.models.control_stream_cases import DUAL_LAYERS, LAYERS, condition, make_base, make_model, velocity

EXACT = {"rtol": 0.0, "atol": 1e-12}
KEY = "transformer_blocks.2.attn.to_k_control.weight"


def published(*, whole: bool = False, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random weights of the stream under the published names; ``whole`` with SD3's own, other than the base's."""
    weights = make_model(started=True).state_dict()
    own = make_base().state_dict()
    theirs = {ours: name for name, ours in PUBLISHED_NAMES.items()}
    named = {}
    for name, weight in weights.items():
        if name not in own:
            blocks, index, module = name.split(".", 2)
            module, kind = module.rsplit(".", 1)
            named[f"{blocks}.{index}.{theirs[module]}.{kind}"] = weight
        elif whole:
            named[name] = 1.5 * weight
    return {name: weight.to(dtype).contiguous() for name, weight in named.items()}


def write(path: Path, weights: dict[str, Tensor]) -> Path:
    save_file(weights, path, metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("variant", ["r1", "v1"])
@pytest.mark.parametrize("as_folder", [False, True])
@torch.no_grad()
def test_the_streams_weights_arrive_where_they_belong(variant: Variant, as_folder: bool, tmp_path: Path) -> None:
    file = write(tmp_path / (WEIGHTS_FILE if as_folder else "dit4sr.safetensors"), published())
    base = make_base()
    model = load_dit4sr(tmp_path if as_folder else file, base, variant=variant)
    expected = make_model(variant, started=True)
    weights = expected.state_dict()
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert model.config.variant == variant
    torch.testing.assert_close(
        velocity(model, condition=condition()), velocity(expected, condition=condition()), **EXACT
    )
    assert {name for name, p in model.named_parameters() if p.requires_grad} == control_parameter_names(model)


@torch.no_grad()
def test_the_same_weights_mean_something_else_in_the_other_variant(tmp_path: Path) -> None:
    file = write(tmp_path / "dit4sr.safetensors", published())
    first, second = (
        velocity(load_dit4sr(file, make_base(), variant=variant), condition=condition()) for variant in ("v1", "r1")
    )
    assert (first - second).abs().max() > 1e-3


@torch.no_grad()
def test_sd3s_own_weights_are_taken_from_the_file_and_the_base_stays(tmp_path: Path) -> None:
    base = make_base()
    before = velocity(base)
    model = load_dit4sr(write(tmp_path / "a.safetensors", published(whole=True)), base, variant="r1")
    name = "transformer_blocks.1.attn.to_q.weight"
    assert torch.equal(model.get_parameter(name), 1.5 * base.get_parameter(name))
    assert not model.get_parameter(name).requires_grad
    assert torch.equal(velocity(base), before)


def test_the_bases_dtype_counts(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", published(dtype=torch.bfloat16))
    model = load_dit4sr(file, make_base(torch.float32), variant="r1")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_table_names_every_module_of_the_stream() -> None:
    assert len(published()) == 2 * (LAYERS * 5 + len(DUAL_LAYERS) * 4)
    assert len(set(PUBLISHED_NAMES.values())) == len(PUBLISHED_NAMES) == 9


def test_corrected_names(tmp_path: Path) -> None:
    weights = published()
    renamed = {name.replace("ff.conv_control", "ff.depthwise"): weight for name, weight in weights.items()}
    file = write(tmp_path / "a.safetensors", renamed)
    with pytest.raises(
        UserError, match=r"8 weights have no place .*, such as transformer_blocks\.0\.ff\.depthwise\.bias"
    ):
        load_dit4sr(file, make_base(), variant="r1")
    names = {("ff.depthwise" if ours == "control_conv" else name): ours for name, ours in PUBLISHED_NAMES.items()}
    model = load_dit4sr(file, make_base(), variant="r1", names=names)
    block = model.transformer_blocks[0]
    assert torch.equal(block.control_conv.weight, weights["transformer_blocks.0.ff.conv_control.weight"])


def test_a_name_without_a_place(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.safetensors", published() | {"transformer_blocks.0.attn2.extra_control.weight": torch.ones(1)}
    )
    with pytest.raises(
        UserError, match=r"1 weights have no place in the model, such as .*\.attn2\.extra_control\.weight"
    ):
        load_dit4sr(file, make_base(), variant="r1")


@pytest.mark.parametrize("variant", ["r1", "v1"])
def test_a_missing_name(variant: Variant, tmp_path: Path) -> None:
    weights = published()
    del weights[KEY]
    with pytest.raises(UserError, match=r"1 weights .* are missing, such as transformer_blocks\.2\.control_attn\.to_k"):
        load_dit4sr(write(tmp_path / "a.safetensors", weights), make_base(), variant=variant)


def test_sd3_without_the_stream(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.safetensors", {name: weight.contiguous() for name, weight in make_base().state_dict().items()}
    )
    with pytest.raises(UserError, match="56 weights of the low-resolution stream are missing"):
        load_dit4sr(file, make_base(), variant="r1")


def test_another_shape(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", published() | {KEY: torch.ones(16, 8)})
    with pytest.raises(UserError, match=rf"{KEY} has shape \[16, 8\]; with this base it should have \[16, 16\]"):
        load_dit4sr(file, make_base(), variant="r1")


def test_weights_of_a_base_with_more_dual_attentions(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", published())
    with pytest.raises(
        UserError, match=r"have no place in the model, such as transformer_blocks\.1\.attn2\.to_k_control"
    ):
        load_dit4sr(file, make_base(dual_attention_layers=(0,)), variant="r1")


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    torch.save(published(), tmp_path / "dit4sr.bin")
    for path in (tmp_path / "dit4sr.bin", tmp_path, tmp_path / "nowhere.safetensors"):
        with pytest.raises(UserError, match=r"expected a \.safetensors file, or a folder with one"):
            load_dit4sr(path, make_base(), variant="r1")


def test_a_damaged_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", published())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=f"cannot load {file}"):
        load_dit4sr(file, make_base(), variant="r1")
