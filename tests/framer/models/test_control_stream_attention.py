"""The stream's attention and convolution against the same written out plainly."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from framer.models.control_stream import Variant
from framer.models.control_stream.attention import ControlProjections, ControlStreamAttnProcessor
from framer.models.control_stream.feed_forward import feed_forward
from tests.framer.models.control_stream_cases import GRID, WIDTH, draw, make_base, make_model

EXACT = {"rtol": 0.0, "atol": 1e-12}
TOKENS = GRID[0] * GRID[1]
TEXT = 3


def streams() -> tuple[Tensor, Tensor, Tensor]:
    return draw(2, TOKENS, WIDTH, seed=1), draw(2, TOKENS, WIDTH, seed=2), draw(2, TEXT, WIDTH, seed=3)


def modules(variant: Variant, name: str = "attn", block: int = 0) -> tuple[Attention, ControlProjections]:
    parent = make_model(variant, started=True).transformer_blocks[block]
    return getattr(parent, name), getattr(parent, f"control_{name}")


def linear(layer: nn.Module, tokens: Tensor) -> Tensor:
    return tokens @ layer.weight.T + layer.bias


def plain_attention(
    attn: Attention, control: ControlProjections, noisy: Tensor, low: Tensor, text: Tensor | None, variant: Variant
) -> list[Tensor]:
    """One head and one sample at a time, softmax written out."""

    def normed(layer: nn.Module | None, heads: Tensor) -> Tensor:
        if layer is None:
            return heads
        return heads / (heads.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight

    def heads(tokens: Tensor) -> Tensor:
        return torch.stack(tokens.split(WIDTH // attn.heads, dim=-1), dim=1)

    def projected(what: str) -> list[Tensor]:
        shared, own = getattr(attn, f"to_{what}"), getattr(control, f"to_{what}")
        norm = getattr(attn, f"norm_{what}", None)
        parts = [
            normed(norm, heads(linear(shared, noisy))),
            normed(norm, heads(linear(shared, low) + linear(own, low))),
        ]
        if text is not None:
            added = getattr(attn, f"norm_added_{what}", None)
            parts.append(normed(added, heads(linear(getattr(attn, f"add_{what}_proj"), text))))
        return parts

    query, key, value = (projected(what) for what in "qkv")
    if variant == "v1":
        key[1] = key[0]
    scores = torch.cat(query, dim=2) @ torch.cat(key, dim=2).mT / (WIDTH // attn.heads) ** 0.5
    mixed = torch.cat((scores.exp() / scores.exp().sum(-1, keepdim=True) @ torch.cat(value, dim=2)).unbind(1), dim=-1)
    outputs = [
        linear(attn.to_out[0], mixed[:, :TOKENS]),
        linear(control.to_out, mixed[:, TOKENS : 2 * TOKENS]) + low,
    ]
    if text is not None:
        outputs.append(linear(attn.to_add_out, mixed[:, 2 * TOKENS :]))
    return outputs


@pytest.mark.parametrize("variant", ["r1", "v1"])
@pytest.mark.parametrize("name", ["attn", "attn2"])
@torch.no_grad()
def test_attention_is_what_it_is_written_out(variant: Variant, name: str) -> None:
    attn, control = modules(variant, name)
    noisy, low, text = streams()
    given = text if name == "attn" else None
    images, text_output = attn(noisy, given, condition_hidden_states=low, control=control)
    outputs = images if text_output is None else [*images, text_output]
    expected = plain_attention(attn, control, noisy, low, given, variant)
    assert len(outputs) == len(expected) == (3 if name == "attn" else 2)
    for output, plain in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, plain, rtol=0, atol=1e-7)  # diffusers normalises queries in float32


@torch.no_grad()
def test_the_control_projections_act_on_the_low_resolution_tokens_alone() -> None:
    model = make_model()
    attn, control = model.transformer_blocks[0].attn, model.transformer_blocks[0].control_attn
    noisy, low, text = streams()
    before, text_before = attn(noisy, text, condition_hidden_states=low, control=control)
    control.to_q.weight += draw(WIDTH, WIDTH, seed=5)
    after, text_after = attn(noisy, text, condition_hidden_states=low, control=control)
    assert torch.equal(after[0], before[0])
    assert torch.equal(text_after, text_before)
    assert (after[1] - before[1]).abs().max() > 0.01


@pytest.mark.parametrize(("variant", "matters"), [("r1", True), ("v1", False)])
@torch.no_grad()
def test_the_key_control_matters_in_r1_alone(variant: Variant, matters: bool) -> None:
    attn, control = modules(variant)
    noisy, low, text = streams()
    (before, _), _ = attn(noisy, text, condition_hidden_states=low, control=control)
    control.to_k.weight += draw(WIDTH, WIDTH, seed=5)
    (after, _), _ = attn(noisy, text, condition_hidden_states=low, control=control)
    assert torch.equal(after, before) is not matters


@torch.no_grad()
def test_without_the_stream_attention_is_diffusers_own() -> None:
    attn, plain = make_model(started=True).transformer_blocks[0].attn, make_base().transformer_blocks[0].attn
    assert isinstance(attn.processor, ControlStreamAttnProcessor)
    noisy, _, text = streams()
    (image,), text_output = attn(noisy, text)
    expected_image, expected_text = plain(noisy, text)
    torch.testing.assert_close(image, expected_image, **EXACT)
    torch.testing.assert_close(text_output, expected_text, **EXACT)


@torch.no_grad()
def test_at_the_start_the_feed_forward_layer_gives_the_noisy_tokens_exactly_what_sd3s_does() -> None:
    block = make_model().transformer_blocks[0]
    noisy, low, _ = streams()
    outputs = feed_forward(block.ff, block.control_conv, [noisy, low], GRID, condition_ends=False)
    assert torch.equal(outputs[0], block.ff(noisy))
    assert torch.equal(outputs[1], block.ff(low))


@torch.no_grad()
def test_the_convolution_lies_between_the_linears_and_goes_from_the_low_resolution_tokens_to_the_noisy() -> None:
    block = make_model(started=True).transformer_blocks[0]
    noisy, low, _ = streams()
    outputs = feed_forward(block.ff, block.control_conv, [noisy, low], GRID, condition_ends=False)
    first, _, second = block.ff.net
    activations = first(low).view(2, *GRID, -1)
    padded = nn.functional.pad(activations, (0, 0, 1, 1, 1, 1))
    kernel = block.control_conv.weight[:, 0]
    moved = sum(
        padded[:, row : row + GRID[0], column : column + GRID[1]] * kernel[:, row, column]
        for row in range(3)
        for column in range(3)
    )
    expected = second(first(noisy) + (moved + block.control_conv.bias).flatten(1, 2))
    torch.testing.assert_close(outputs[0], expected, **EXACT)
    torch.testing.assert_close(outputs[1], block.ff(low), **EXACT)


@pytest.mark.parametrize("index", [0, 2])
@torch.no_grad()
def test_at_the_start_a_block_treats_both_images_alike_but_for_the_residual_of_the_low_resolution_one(
    index: int,
) -> None:
    block = make_model().transformer_blocks[index]

    def without_residual(
        _: nn.Module, args: object, given: dict[str, Tensor], output: tuple[list[Tensor], object]
    ) -> object:
        (noisy, low), text = output
        return [noisy, low - given["condition_hidden_states"]], text

    noisy, low, text = streams()
    temb = draw(2, WIDTH, seed=6)
    with_residual = block(noisy, text, temb, low, GRID)
    for attn in (block.attn, block.attn2):
        if attn is not None:
            attn.register_forward_hook(without_residual, with_kwargs=True)
    text_output, noisy_output, low_output = block(noisy, text, temb, low, GRID)
    text_swapped, noisy_swapped, low_swapped = block(low, text, temb, noisy, GRID)
    assert (with_residual[2] - low_output).abs().max() > 0.01
    torch.testing.assert_close(with_residual[:2], (text_output, noisy_output), **EXACT)
    torch.testing.assert_close(
        (text_swapped, noisy_swapped, low_swapped), (text_output, low_output, noisy_output), **EXACT
    )


@torch.no_grad()
def test_where_the_stream_ends_its_convolution_still_counts() -> None:
    block = make_model(started=True).transformer_blocks[0]
    noisy, low, _ = streams()
    goes_on = feed_forward(block.ff, block.control_conv, [noisy, low], GRID, condition_ends=False)
    ends = feed_forward(block.ff, block.control_conv, [noisy, low], GRID, condition_ends=True)
    assert len(ends) == 1
    assert torch.equal(ends[0], goes_on[0])
    assert (ends[0] - block.ff(noisy)).abs().max() > 0.01
