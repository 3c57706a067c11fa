"""A block of SD3 or SD3.5 with the low-resolution stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from diffusers.models.attention import JointTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from framer.models.control_stream.attention import ControlProjections, ControlStreamAttnProcessor, Variant
from framer.models.control_stream.feed_forward import feed_forward
from framer.models.control_stream.layers import ZeroConv2d


class ControlStreamTransformerBlock(nn.Module):
    """A joint block that carries a second image stream through the weights of the first.

    The low-resolution stream shares the modulation, the attention and the feed-forward layer of the noisy stream. What
    it has of its own, named ``control_*``, are projections in each attention and a convolution of its activations into
    the noisy stream's.

    SD3.5's second attention (``attn2``) is one among images: in it the noisy and the low-resolution tokens attend to
    each other, as in the first but without text, with control projections of its own. A low-resolution stream that
    passed it by would lack an update which the frozen weights behind it expect of an image.

    The last block drops the text. Nothing reads the low-resolution tokens after it either, so it ends that stream at
    the convolution.

    Args:
        block: Its modules become this block's, under the names that they have in SD3.
        variant: Whose keys the low-resolution tokens have in attention.
    """

    def __init__(self, block: JointTransformerBlock, variant: Variant) -> None:
        super().__init__()
        self.context_pre_only = bool(block.context_pre_only)
        self.norm1 = block.norm1
        self.norm1_context = block.norm1_context
        self.attn = block.attn
        self.attn2 = block.attn2
        self.norm2 = block.norm2
        self.ff = block.ff
        self.norm2_context = block.norm2_context
        self.ff_context = block.ff_context
        self.control_attn = _add_control(self.attn, variant)
        self.control_attn2 = None if self.attn2 is None else _add_control(self.attn2, variant)
        channels = self.ff.net[-1].in_features
        self.control_conv = ZeroConv2d(channels, channels, kernel_size=3, padding=1, groups=channels)

    @property
    def control_attentions(self) -> list[tuple[ControlProjections, Attention]]:
        """The control projections, each with the attention that it adds to."""
        pairs = [(self.control_attn, self.attn)]
        return pairs if self.control_attn2 is None else [*pairs, (self.control_attn2, self.attn2)]

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        condition_hidden_states: Tensor | None,
        grid: tuple[int, int],
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Runs the block.

        Args:
            hidden_states: Noisy tokens, ``[B, h*w, D]``.
            encoder_hidden_states: Text tokens, ``[B, T, D]``.
            temb: Conditioning vector, ``[B, D]``.
            condition_hidden_states: Low-resolution tokens, ``[B, h*w, D]``; None: the block is SD3's own.
            grid: Rows and columns of image tokens ``(h, w)``.

        Returns:
            Text tokens, noisy tokens and low-resolution tokens, in the shapes in which they came; the last block gives
            None for text and low-resolution tokens.
        """
        images = [hidden_states] if condition_hidden_states is None else [hidden_states, condition_hidden_states]
        modulated = [_modulate(self.norm1, tokens, temb) for tokens in images]
        if self.context_pre_only:
            text, normed_text = None, self.norm1_context(encoder_hidden_states, temb)
        else:
            text = _modulate(self.norm1_context, encoder_hidden_states, temb)
            normed_text = text.attention.tokens

        inputs = [part.attention for part in modulated]
        updates, text_update = _attend(self.attn, self.control_attn, inputs, normed_text)
        images = _updated(images, [part.gate for part in inputs], updates)
        if self.attn2 is not None:
            inputs = [part.dual for part in modulated if part.dual is not None]
            updates, _ = _attend(self.attn2, self.control_attn2, inputs, None)
            images = _updated(images, [part.gate for part in inputs], updates)

        updates = feed_forward(
            self.ff,
            self.control_conv,
            [_scaled(self.norm2(tokens), part) for tokens, part in zip(images, modulated, strict=True)],
            grid,
            condition_ends=self.context_pre_only,
        )
        going_on = len(updates)
        images = _updated(images[:going_on], [part.ff_gate for part in modulated[:going_on]], updates)
        if text is None:
            return None, images[0], None
        encoder_hidden_states = encoder_hidden_states + text.attention.gate.unsqueeze(1) * text_update
        text_update = self.ff_context(_scaled(self.norm2_context(encoder_hidden_states), text))
        encoder_hidden_states = encoder_hidden_states + text.ff_gate.unsqueeze(1) * text_update
        return encoder_hidden_states, images[0], images[1] if going_on > 1 else None


class _AttentionInput(NamedTuple):
    """What a stream brings to an attention, ``[B, N, D]``, and the gate of what it takes from there, ``[B, D]``."""

    tokens: Tensor
    gate: Tensor


class _Modulated(NamedTuple):
    """What an adaptive norm makes of a stream's tokens and the conditioning vector; vectors are ``[B, D]``."""

    attention: _AttentionInput
    ff_shift: Tensor
    ff_scale: Tensor
    ff_gate: Tensor
    dual: _AttentionInput | None
    """For the second attention, where the block has one."""


def _modulate(norm: nn.Module, tokens: Tensor, temb: Tensor) -> _Modulated:
    normed, gate, ff_shift, ff_scale, ff_gate, *dual = norm(tokens, emb=temb)
    return _Modulated(
        _AttentionInput(normed, gate), ff_shift, ff_scale, ff_gate, _AttentionInput(*dual) if dual else None
    )


def _add_control(attention: Attention, variant: Variant) -> ControlProjections:
    attention.set_processor(ControlStreamAttnProcessor(variant))
    return ControlProjections(attention)


def _attend(
    attention: Attention, control: ControlProjections | None, images: Sequence[_AttentionInput], text: Tensor | None
) -> Any:
    """As :class:`ControlStreamAttnProcessor` returns: updates of the images, and of the text."""
    noisy, *condition = images
    return attention(
        noisy.tokens, text, condition_hidden_states=condition[0].tokens if condition else None, control=control
    )


def _updated(images: Sequence[Tensor], gates: Sequence[Tensor], updates: Sequence[Tensor]) -> list[Tensor]:
    return [tokens + gate.unsqueeze(1) * update for tokens, gate, update in zip(images, gates, updates, strict=True)]


def _scaled(normed: Tensor, modulated: _Modulated) -> Tensor:
    return normed * (1 + modulated.ff_scale.unsqueeze(1)) + modulated.ff_shift.unsqueeze(1)
