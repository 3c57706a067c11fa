"""Attention over the noisy image, the low-resolution image and the text."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from framer.models.control_stream.layers import ZeroLinear

Variant: TypeAlias = Literal["r1", "v1"]
"""Whose keys the low-resolution tokens have: ``r1``, their own; ``v1``, those of the noisy tokens."""


class ControlProjections(nn.Module):
    """What the low-resolution stream has of its own in an attention that it shares with the noisy stream.

    Args:
        attention: Tells the sizes.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        width, inner = attention.query_dim, attention.inner_dim
        self.to_q = ZeroLinear(width, inner)
        self.to_k = ZeroLinear(width, inner)
        self.to_v = ZeroLinear(width, inner)
        self.to_out = nn.Linear(inner, attention.out_dim)


class ControlStreamAttnProcessor:
    """Runs a diffusers ``Attention`` with the low-resolution tokens as a further stream.

    Their queries, keys and values are the attention's own image projections plus the control projections, normalised
    after the sum as the attention normalises those of the image. All streams attend to all. The low-resolution tokens
    leave through an output projection of their own, and what they came in as is added.

    In the variant ``v1`` the noisy tokens' keys stand in the place of the low-resolution tokens' keys, as in the code
    that DiT4SR's first weights were trained with; the control projection of keys then has no effect.

    Args:
        variant: Whose keys the low-resolution tokens have.
    """

    # Set by diffusers: the first by set_attention_backend, the second for context parallelism.
    _attention_backend: Any = None
    _parallel_config: Any = None

    def __init__(self, variant: Variant) -> None:
        self.variant = variant

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        condition_hidden_states: Tensor | None = None,
        control: ControlProjections | None = None,
    ) -> tuple[list[Tensor], Tensor | None]:
        """Attends.

        Args:
            attn: The attention whose weights all streams use.
            hidden_states: Noisy tokens, ``[B, N, D]``.
            encoder_hidden_states: Text tokens, ``[B, T, D]``; None in an attention among images alone.
            attention_mask: Not used; diffusers' ``Attention`` hands one over.
            condition_hidden_states: Low-resolution tokens, ``[B, N, D]``; None without that stream.
            control: Their projections; read only where there are such tokens.

        Returns:
            The noisy tokens and, where given, the low-resolution ones, ``[B, N, D]`` each; and the text tokens
            ``[B, T, D]`` where given.
        """
        streams = [_project_image(attn, hidden_states)]
        if condition_hidden_states is not None:
            assert control is not None
            keys = streams[0].key if self.variant == "v1" else None
            streams.append(_project_condition(attn, condition_hidden_states, control, keys))
        if encoder_hidden_states is not None:
            streams.append(_project_text(attn, encoder_hidden_states))

        query, key, value = (torch.cat(parts, dim=1) for parts in zip(*streams, strict=True))
        attended = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        outputs = list(attended.flatten(2).to(query.dtype).split([part.query.shape[1] for part in streams], dim=1))

        text: Tensor | None = None
        if encoder_hidden_states is not None:
            text = outputs.pop()
            if not attn.context_pre_only:
                text = attn.to_add_out(text)
        for module in attn.to_out:
            outputs[0] = module(outputs[0])
        if condition_hidden_states is not None:
            assert control is not None
            outputs[1] = control.to_out(outputs[1]) + condition_hidden_states
        return outputs, text


class _Projected(NamedTuple):
    """One stream's part of the attention, ``[B, N, heads, head width]`` each."""

    query: Tensor
    key: Tensor
    value: Tensor


def _project_image(attn: Attention, tokens: Tensor) -> _Projected:
    return _Projected(
        _heads(attn, attn.to_q(tokens), attn.norm_q),
        _heads(attn, attn.to_k(tokens), attn.norm_k),
        _heads(attn, attn.to_v(tokens), None),
    )


def _project_condition(attn: Attention, tokens: Tensor, control: ControlProjections, keys: Tensor | None) -> _Projected:
    """As :func:`_project_image` plus the control projections; ``keys``, where given, are taken for its own."""
    if keys is None:
        keys = _heads(attn, attn.to_k(tokens) + control.to_k(tokens), attn.norm_k)
    return _Projected(
        _heads(attn, attn.to_q(tokens) + control.to_q(tokens), attn.norm_q),
        keys,
        _heads(attn, attn.to_v(tokens) + control.to_v(tokens), None),
    )


def _project_text(attn: Attention, tokens: Tensor) -> _Projected:
    return _Projected(
        _heads(attn, attn.add_q_proj(tokens), attn.norm_added_q),
        _heads(attn, attn.add_k_proj(tokens), attn.norm_added_k),
        _heads(attn, attn.add_v_proj(tokens), None),
    )


def _heads(attn: Attention, projected: Tensor, norm: nn.Module | None) -> Tensor:
    split = projected.reshape(*projected.shape[:2], attn.heads, -1)
    if norm is None:
        return split
    normed: Tensor = norm(split)
    return normed
