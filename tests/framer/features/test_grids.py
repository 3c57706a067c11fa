from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import COLUMNS, ROWS, TEXT, TINY
from torch import Tensor, nn

from framer.features import FeatureError, FeatureTap, adapter_for
from framer.features.adapters import grids, pickers
from framer.features.adapters.layouts import TokenGrid

IMAGE = ROWS * COLUMNS


class Model(nn.Module):
    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config


def ids(rows: int, columns: int, frame: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.cartesian_prod(torch.tensor([frame]), torch.arange(rows).float(), torch.arange(columns).float())
    return values.to(dtype)


def grid_of(name: str, **changed: Any) -> TokenGrid:
    """The grid of a tiny transformer for its inputs with these ones changed; no forward is run."""
    tiny = TINY[name]
    return adapter_for(tiny.build()).token_grid(tiny.inputs(2) | changed)


def maps_of(name: str, **changed: Any) -> dict[int, Tensor]:
    tiny = TINY[name]
    model = tiny.build().eval()
    tap = FeatureTap(adapter_for(model))
    with tap.record(gradients=False), torch.no_grad():
        model(**(tiny.inputs(2) | changed))
    assert tap.capture is not None
    return tap.capture.features


@pytest.mark.parametrize(
    ("config", "shape", "expected"),
    [
        ({"patch_size": 2}, (1, 4, 8, 12), (1, 4, 6)),
        ({"patch_size": 2}, (1, 4, 9, 13), (1, 4, 6)),
        ({"patch_size": 2}, (1, 4, 3, 8, 12), (3, 4, 6)),
        ({"patch_size": (1, 2)}, (1, 4, 8, 12), (1, 8, 6)),
        ({"patch_size": [2, 2, 4]}, (1, 4, 4, 8, 12), (2, 4, 3)),
        ({"patch_size": None}, (1, 4, 8, 12), (1, 8, 12)),
        ({}, (1, 4, 8, 12), (1, 8, 12)),
    ],
)
def test_patches_of_a_latent(config, shape, expected):
    grid = grids.patchified()(Model(**config), {"hidden_states": torch.zeros(shape)})
    assert grid == expected


def test_tokens_in_place_of_a_latent_are_refused():
    with pytest.raises(FeatureError, match=r"hidden_states of Model has shape \[2, 24, 8\]"):
        grids.patchified()(Model(patch_size=2), {"hidden_states": torch.zeros(2, 24, 8)})


@pytest.mark.parametrize(
    "coordinates",
    [
        pytest.param(ids(ROWS, COLUMNS), id="plain"),
        pytest.param(ids(ROWS, COLUMNS) + 512, id="with an offset"),
        pytest.param(ids(ROWS, COLUMNS) * 0.37, id="scaled"),
        pytest.param(ids(ROWS, COLUMNS).expand(2, -1, -1), id="batched"),
        pytest.param(ids(ROWS, COLUMNS).to(torch.bfloat16), id="exact in bfloat16"),
        pytest.param(torch.cat([ids(ROWS, COLUMNS), ids(3, 5, frame=1.0)]), id="with a reference"),
    ],
)
def test_grid_of_coordinates(coordinates):
    assert grids.from_ids()(Model(), {"img_ids": coordinates}) == (1, ROWS, COLUMNS)


@pytest.mark.parametrize("sides", [(1, 6), (6, 1), (1, 1)])
def test_grid_of_one_row_or_column(sides):
    assert grids.from_ids()(Model(), {"img_ids": ids(*sides)}) == (1, *sides)


@pytest.mark.parametrize(
    "coordinates",
    [
        pytest.param(ids(ROWS, COLUMNS)[:-1], id="a token is missing"),
        pytest.param(ids(ROWS, COLUMNS).flip(0), id="from the end"),
        pytest.param(ids(ROWS, COLUMNS).view(ROWS, COLUMNS, 3).transpose(0, 1).flatten(0, 1), id="column by column"),
        pytest.param(torch.zeros(IMAGE, 3), id="all zero"),
        pytest.param(torch.cat([ids(ROWS, COLUMNS), ids(ROWS, COLUMNS)]), id="a reference in the same frame"),
        pytest.param((ids(ROWS, COLUMNS) + 512).to(torch.bfloat16), id="rounded"),
        pytest.param(torch.zeros(0, 3), id="none"),
    ],
)
def test_coordinates_that_are_no_row_major_grid_are_refused(coordinates):
    with pytest.raises(FeatureError, match="img_ids of shape"):
        grids.from_ids()(Model(), {"img_ids": coordinates})


@pytest.mark.parametrize(
    "shapes", [(1, 4, 6), [(1, 4, 6)] * 2, [[(1, 4, 6), (1, 2, 2)]] * 2, [torch.tensor([1, 4, 6]).tolist()]]
)
def test_grid_of_shapes(shapes):
    assert grids.from_shapes()(Model(), {"img_shapes": shapes}) == (1, 4, 6)


def test_layers_of_an_image_are_frames():
    shapes = [[(1, 4, 6), (1, 4, 6), (1, 4, 6), (1, 2, 2)]] * 2
    rule = grids.from_layered_shapes()
    assert rule(Model(use_layer3d_rope=True), {"img_shapes": shapes}) == (3, 4, 6)
    assert rule(Model(use_layer3d_rope=False), {"img_shapes": shapes}) == (1, 4, 6)


@pytest.mark.parametrize(
    ("name", "changed", "sizes"),
    [
        ("QwenImageTransformer2DModel", {"img_shapes": [[(1, 4, 6)], [(1, 6, 4)]]}, r"\(1, 4, 6\), \(1, 6, 4\)"),
        (
            "ZImageTransformer2DModel",
            {"x": [torch.zeros(4, 1, 8, 12), torch.zeros(4, 1, 12, 8)]},
            r"\(1, 8, 12\), \(1, 12, 8\)",
        ),
        (
            "HiDreamImageTransformer2DModel",
            {"hidden_states": torch.zeros(2, 36, 16), "img_sizes": torch.tensor([[4, 6], [6, 4]])},
            r"\(4, 6\), \(6, 4\)",
        ),
    ],
)
def test_images_of_two_sizes_in_a_batch_are_refused(name, changed, sizes):
    with pytest.raises(FeatureError, match=f"different sizes in one batch .{sizes}"):
        grid_of(name, **changed)


def test_marks_of_two_sizes_in_a_batch_are_refused():
    indicator = TINY["Ideogram4Transformer2DModel"].inputs(2)["indicator"]
    indicator[1, -COLUMNS:] = 0
    with pytest.raises(FeatureError, match=r"indicator marks \[24, 18\] image tokens"):
        maps_of("Ideogram4Transformer2DModel", indicator=indicator)


def test_packed_images_of_hidream_have_the_grid_of_their_sizes():
    packed = {"hidden_states": torch.zeros(2, 36, 16), "img_sizes": torch.tensor([[4, 6], [4, 6]])}
    assert grid_of("HiDreamImageTransformer2DModel", **packed) == (1, 4, 6)


def test_reference_images_of_z_image_are_refused():
    latent = torch.zeros(4, 1, 8, 12)
    with pytest.raises(FeatureError, match="lists of reference images in x"):
        grid_of("ZImageTransformer2DModel", x=[[latent, latent]] * 2)


def test_cache_of_references_that_moves_the_image_is_refused():
    with pytest.raises(FeatureError, match="kv_cache_mode='extract'"):
        grid_of("Flux2Transformer2DModel", kv_cache_mode="extract")


@pytest.mark.parametrize(
    "name",
    [
        "FluxTransformer2DModel",
        "ChromaTransformer2DModel",
        "BriaFiboTransformer2DModel",
        "Flux2Transformer2DModel",
        "OvisImageTransformer2DModel",
        "LongCatImageTransformer2DModel",
    ],
)
def test_reference_tokens_after_the_image_are_left_out(name):
    """As Kontext and the editing pipelines do: the references' tokens follow the image's in the packed sequence."""
    inputs = TINY[name].inputs(2)
    reference = inputs["img_ids"][..., :6, :].clone()
    reference[..., 0] += 1
    packed = torch.cat([inputs["hidden_states"], torch.zeros(2, 6, 8)], 1)
    coordinates = torch.cat([inputs["img_ids"], reference], -2)
    expected = maps_of(name, hidden_states=packed, img_ids=coordinates)
    packed = packed.clone()
    packed[:, IMAGE:] += 10.0
    changed = maps_of(name, hidden_states=packed, img_ids=coordinates)
    packed[:, 7] += 100.0
    own = maps_of(name, hidden_states=packed, img_ids=coordinates)
    for number, feature in expected.items():
        assert feature.shape[2:] == (ROWS, COLUMNS)
        assert not torch.equal(changed[number], feature)
    distance = (own[0] - changed[0]).norm(dim=1).flatten(1)
    assert distance.argmax(1).tolist() == [7, 7]


def fibo2(**changed: Any) -> dict[int, Tensor]:
    return maps_of("BriaFibo2Transformer2DModel", **changed)


def test_references_of_bria_fibo_2_are_left_out():
    references = [torch.randn(2, 4, 4, 8, generator=torch.Generator().manual_seed(0))]
    expected = fibo2(context_latents=references)
    latent = TINY["BriaFibo2Transformer2DModel"].inputs(2)["hidden_states"]
    latent[..., 2:4, 2:4] += 10.0
    changed = fibo2(context_latents=references, hidden_states=latent)
    for number in (0, 2):
        distance = (changed[number] - expected[number]).norm(dim=1).flatten(1)
        assert distance.argmax(1).tolist() == [COLUMNS + 1] * 2


def test_prompts_of_two_lengths_of_bria_fibo_2_are_refused():
    mask = torch.ones(2, TEXT, dtype=torch.bool)
    mask[1, -2:] = False
    with pytest.raises(FeatureError, match=r"prompts of \[5, 3\] tokens"):
        fibo2(encoder_attention_mask=mask)


def test_one_latent_of_joy_image_is_the_image():
    assert grid_of("JoyImageEditTransformer3DModel", hidden_states=torch.zeros(2, 4, 1, 8, 12)) == (1, 4, 6)


def test_tokens_after_prompts_of_two_lengths():
    tokens = torch.arange(2 * 8).view(2, 8, 1).float()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    picked = pickers.after_prompts("mask")(tokens, {"mask": mask}, TokenGrid(1, 1, 4))
    assert picked[..., 0].tolist() == [[3, 4, 5, 6], [9, 10, 11, 12]]


def test_missing_coordinates_are_told():
    tiny = TINY["FluxTransformer2DModel"]
    arguments = tiny.inputs(1)
    del arguments["img_ids"]
    with pytest.raises(FeatureError, match="img_ids"):
        adapter_for(tiny.build()).token_grid(arguments)
