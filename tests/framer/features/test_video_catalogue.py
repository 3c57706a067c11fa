from __future__ import annotations

import inspect
from typing import Any

import diffusers.models.transformers
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention

from framer.features import CaptureError, FeatureError
from framer.features.adapters.layouts import TokenGrid
from framer.features.adapters.transformer import TransformerAdapter
from framer.features.adapters.video_catalogue import UNSUPPORTED, VIDEO_LAYOUTS
from framer.features.adapters.video_grids import minimax_positions, named_sizes, video_patches
from framer.features.adapters.video_tokens import in_square_blocks, of_temporal_block
from framer.features.taps import Capture, FeatureTap
from tests.framer.features.tiny_video_transformers import TINY_VIDEO, VARIANTS, TinyTransformer, dense_flex_attention

CASES = TINY_VIDEO | VARIANTS

# Images, in spite of the name.
IMAGES = {"JoyImageEditTransformer3DModel", "JoyImageEditPlusTransformer3DModel"}


@pytest.fixture(params=CASES)
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TinyTransformer:
    """Each class in turn, with an attention that has a backward pass on the CPU."""
    case = CASES[request.param]
    if case.flex:
        monkeypatch.setattr(flex_attention, "flex_attention", dense_flex_attention)
    return case


def captured(model: nn.Module, inputs: dict[str, Any]) -> tuple[Capture, Any]:
    tap = FeatureTap(TransformerAdapter(model, VIDEO_LAYOUTS[type(model).__name__]))
    with tap.record():
        sample = model(**inputs).sample
    assert tap.capture is not None
    return tap.capture, sample


def tensors(sample: Any) -> list[Tensor]:
    return [sample] if isinstance(sample, Tensor) else list(sample)


def test_every_video_transformer_of_diffusers_is_known_or_refused_with_a_reason():
    exported = {
        name
        for name, value in vars(diffusers.models.transformers).items()
        if inspect.isclass(value) and any(word in name for word in ("Transformer3D", "Video", "Temporal", "Cosmos"))
    }
    assert exported - IMAGES == VIDEO_LAYOUTS.keys() | UNSUPPORTED.keys()
    assert not VIDEO_LAYOUTS.keys() & UNSUPPORTED.keys()
    assert TINY_VIDEO.keys() == VIDEO_LAYOUTS.keys()


def test_every_block_gives_a_map_per_frame_that_trains(tiny):
    model = tiny.build()
    capture, _ = captured(model, tiny.inputs(model, tiny.batch))
    frames, height, width = tiny.grid
    assert capture.grid == TokenGrid(*tiny.grid)
    assert len(capture.features) >= 4
    for feature in capture.features.values():
        assert feature.shape == (tiny.batch * frames, feature.shape[1], height, width)
        assert feature.isfinite().all()
    for number, block in enumerate(TransformerAdapter(model, VIDEO_LAYOUTS[tiny.name]).blocks):
        model.zero_grad()
        capture.features[number].square().mean().backward(retain_graph=True)
        gradients = [parameter.grad for parameter in block.parameters() if parameter.grad is not None]
        assert any(gradient.any() for gradient in gradients)
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("place", [(0, 0, 1), (1, 1, 0), (-1, -1, -2)])
def test_a_patch_of_the_latent_is_that_place_of_that_frames_map(tiny, place):
    model = tiny.build()
    frame, row, column = (at % size for at, size in zip(place, tiny.grid, strict=True))
    sample = tiny.batch - 1
    inputs = tiny.inputs(model, tiny.batch)
    before = captured(model, inputs)[0].features[0]
    changed = tiny.inputs(model, tiny.batch)
    frames, height, width = tiny.patch
    view = tiny.latent(changed, sample)
    view[
        frame * frames : (frame + 1) * frames, row * height : (row + 1) * height, column * width : (column + 1) * width
    ].add_(1.0)
    change = (captured(model, changed)[0].features[0] - before).norm(dim=1)
    largest = torch.unravel_index(change.argmax(), change.shape)
    assert tuple(map(int, largest)) == (sample * tiny.grid[0] + frame, row, column)


def test_recomputing_the_blocks_changes_neither_the_output_nor_the_maps_nor_the_gradients(tiny):
    if tiny.name == "WanAnimate2Transformer3DModel":
        pytest.skip("diffusers gives its blocks keyword arguments, which its own checkpointing function does not take")
    results = []
    for checkpointed in (False, True):
        model = tiny.build()
        if checkpointed:
            model.enable_gradient_checkpointing()
        capture, sample = captured(model, tiny.inputs(model, tiny.batch))
        loss = sum(value.square().mean() for value in [*tensors(sample), *capture.features.values()])
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((tensors(sample), list(capture.features.values()), gradients))
    (plain, plain_maps, plain_gradients), (again, maps, gradients) = results
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(plain_maps, maps, strict=True))
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-7, msg=lambda text, n=name: n + text)


def test_wan_animate_2_cannot_be_checkpointed_by_diffusers(monkeypatch):
    monkeypatch.setattr(flex_attention, "flex_attention", dense_flex_attention)
    tiny = TINY_VIDEO["WanAnimate2Transformer3DModel"]
    model = tiny.build()
    inputs = tiny.inputs(model, tiny.batch)
    model.enable_gradient_checkpointing()
    with pytest.raises(TypeError, match="unexpected keyword argument 'kv_cache'"):
        model(**inputs)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.flex])
def test_dense_attention_of_these_tests_is_flex_attention(name, monkeypatch):
    tiny = CASES[name]
    model = tiny.build()
    with torch.no_grad():
        expected = tensors(model(**tiny.inputs(model, tiny.batch)).sample)
        monkeypatch.setattr(flex_attention, "flex_attention", dense_flex_attention)
        got = tensors(model(**tiny.inputs(model, tiny.batch)).sample)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def changed_inputs(name: str, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    tiny = TINY_VIDEO[name]
    model = tiny.build()
    return model, tiny.inputs(model, tiny.batch) | changes


@pytest.mark.parametrize("name", ["LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"])
def test_packed_latents_without_sizes_are_refused(name):
    layout = VIDEO_LAYOUTS[name]
    coordinates = {"video_coords": torch.zeros(1, 3, 24), "num_frames": None, "height": 2}
    with pytest.raises(FeatureError, match="needs the forward's num_frames, width: pass num_frames, height and width"):
        layout.grid(TINY_VIDEO[name].build(), coordinates)


def test_a_patch_that_does_not_fit_whole_is_counted_as_the_rotary_embedding_of_ltx_2_does():
    model = TINY_VIDEO["LTX2VideoTransformer3DModel"].build()
    model.register_to_config(patch_size=2, patch_size_t=2)
    sizes = {"num_frames": 3, "height": 4, "width": 6}
    assert named_sizes(in_patches=False)(model, sizes) == (2, 2, 3)
    assert named_sizes(in_patches=True)(model, sizes) == (3, 4, 6)


def test_videos_of_several_shapes_in_one_batch_are_refused():
    model = TINY_VIDEO["WanTransformer3DModel"].build()
    # As many tokens either way, which the model itself accepts.
    videos = [torch.zeros(4, 3, 4, 6), torch.zeros(4, 3, 6, 4)]
    with pytest.raises(FeatureError, match=r"one shape.*\(4, 3, 4, 6\), \(4, 3, 6, 4\)"):
        video_patches()(model, {"hidden_states": videos})


def test_the_pass_over_the_reference_video_of_wan_animate_2_is_refused():
    model, inputs = changed_inputs("WanAnimate2Transformer3DModel")
    reference = inputs | {"kv_cache_mode": "extract", "offset_grid_sizes": torch.tensor([[3, 2, 4]] * 2)}
    with pytest.raises(FeatureError, match="kv_cache_mode='extract'"):
        captured(model, reference)


def test_skipping_a_block_is_refused():
    model, inputs = changed_inputs("LatteTransformer3DModel", enable_temporal_attentions=False)
    with pytest.raises(CaptureError, match="captured 0 features of LatteTransformer3DModel, which has 4 blocks"):
        captured(model, inputs)


def test_sampling_with_a_cache_is_refused():
    model, inputs = changed_inputs("AnyFlowFARTransformer3DModel", kv_cache=[{}])
    with pytest.raises(FeatureError, match="leave kv_cache out"):
        VIDEO_LAYOUTS["AnyFlowFARTransformer3DModel"].grid(model, inputs)


def test_anyflow_without_clean_context_and_with_few_chunks(monkeypatch):
    monkeypatch.setattr(flex_attention, "flex_attention", dense_flex_attention)
    model, inputs = changed_inputs(
        "AnyFlowFARTransformer3DModel", clean_hidden_states=None, clean_timestep=None, chunk_partition=[2, 2]
    )
    assert captured(model, inputs)[0].grid == (4, 2, 4)


def test_two_videos_in_one_sequence_are_refused():
    model, inputs = changed_inputs("Cosmos3OmniTransformer", vision_token_shapes=[(3, 2, 4), (1, 2, 4)])
    with pytest.raises(FeatureError, match="2 videos in one sequence"):
        VIDEO_LAYOUTS["Cosmos3OmniTransformer"].grid(model, inputs)


def test_conditions_with_the_videos_own_timestep_are_refused_rather_than_taken_for_a_frame():
    model, inputs = changed_inputs("MiniMaxH3Transformer3DModel")
    same = inputs | {"timestep_indices": torch.zeros_like(inputs["timestep_indices"])}
    with pytest.raises(FeatureError, match="32 rows of the generated video"):
        minimax_positions(model, same)


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_rows_that_are_not_frame_by_frame_and_row_by_row_are_refused(order):
    axes = [torch.arange(size) * 0.5 for size in (3, 2, 4)]
    lattice = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    given = {"video_indices": torch.arange(24), "timestep_indices": torch.zeros(24, dtype=torch.long)}
    assert minimax_positions(None, given | {"position_ids": lattice.flatten(0, 2)}) == (3, 2, 4)
    with pytest.raises(FeatureError, match="frame by frame"):
        minimax_positions(None, given | {"position_ids": lattice.permute(*order, 3).flatten(0, 2)})


def test_tokens_along_time_are_put_frame_by_frame():
    grid = TokenGrid(3, 2, 4)
    expected = torch.arange(2 * 24.0).view(2, 3, 8, 1)
    along_time = expected.transpose(1, 2).reshape(16, 3, 1)
    assert torch.equal(of_temporal_block(along_time, {}, grid), expected.view(2, 24, 1))


def test_square_blocks_need_a_grid_of_whole_blocks():
    with pytest.raises(FeatureError, match="8 x 8, which a grid of 2 x 12 x 8 cannot fill"):
        in_square_blocks(torch.zeros(1, 192, 1), {}, TokenGrid(2, 12, 8))
