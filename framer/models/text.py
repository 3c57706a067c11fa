"""Embeddings of the texts that a model sees: each image's own, or one for all, zeros unless a file gives it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from framer.config.model import ModelConfig
from framer.errors import UserError

PROMPT, POOLED = "prompt_embeds", "pooled_prompt_embeds"
NULL_TEXT_FILE = "null_text.safetensors"
"""In an export: the empty text's embeddings, which a model that was trained with images' own texts sees without one."""


class TextSizes(NamedTuple):
    """Channels of text embeddings."""

    prompt: int
    pooled: int | None
    """None where the model takes no pooled embedding."""


class TextEmbeddings(NamedTuple):
    """What a model sees of a text."""

    prompt: Tensor
    """``[T, D]``, or ``[B, T, D]`` for a batch."""
    pooled: Tensor | None
    """``[P]``, or ``[B, P]`` for a batch."""

    def expand(self, batch: int, like: Tensor) -> TextEmbeddings:
        """The embeddings for a batch, on the device and in the dtype of a tensor; views where possible."""
        prompt = self.prompt.to(like.device, like.dtype).expand(batch, -1, -1)
        pooled = None if self.pooled is None else self.pooled.to(like.device, like.dtype).expand(batch, -1)
        return TextEmbeddings(prompt, pooled)


def text_embeddings(
    config: ModelConfig, sizes: TextSizes, *, negative: bool = False, null: TextEmbeddings | None = None
) -> TextEmbeddings:
    """The embeddings that ``model.text_embeddings`` names, or else those of the empty text, or else zeros.

    Args:
        config: Names a safetensors file with ``prompt_embeds`` ``[T, D]`` and, for a model that takes one,
            ``pooled_prompt_embeds`` ``[P]``.
        sizes: Of the model.
        negative: Those of ``model.negative_text_embeddings`` instead.
        null: Of the empty text, where images have texts of their own.

    Raises:
        UserError: The file is missing or damaged, lacks one of them, or they have other sizes.
    """
    key = "negative_text_embeddings" if negative else "text_embeddings"
    file: str | None = getattr(config, key)
    if file is None:
        if null is not None:
            return null
        pooled = None if sizes.pooled is None else torch.zeros(sizes.pooled)
        return TextEmbeddings(torch.zeros(config.text_tokens, sizes.prompt), pooled)
    path = Path(file).expanduser()
    try:
        found = load_file(path)
    except FileNotFoundError:
        raise UserError(f"model.{key}: {path} not found") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.{key}: cannot read {path}: {error}") from None
    try:
        prompt = _read(found, PROMPT, path, sizes.prompt, ndim=2)
        pooled = None if sizes.pooled is None else _read(found, POOLED, path, sizes.pooled, ndim=1)
    except ValueError as error:
        raise UserError(f"model.{key}: {error}") from None
    return TextEmbeddings(prompt, pooled)


def write_text_embeddings(path: Path, text: TextEmbeddings) -> None:
    """Writes a file that ``model.text_embeddings`` can name.

    Args:
        path: The file.
        text: ``[T, D]`` and ``[P]``.

    Raises:
        OSError: It cannot be written.
        SafetensorError: Likewise.
    """
    pooled = {} if text.pooled is None else {POOLED: text.pooled.contiguous()}
    save_file({PROMPT: text.prompt.contiguous(), **pooled}, path)


def check_text_sizes(text: TextEmbeddings, sizes: TextSizes, *, model: str) -> None:
    """Compares the embeddings of images' texts with what a model takes.

    Args:
        text: Of one text.
        sizes: Of the model; pooled embeddings that it does not take are left out.
        model: Which one, for messages.

    Raises:
        UserError: They have other sizes.
    """
    found = TextSizes(text.prompt.shape[-1], None if text.pooled is None else text.pooled.shape[-1])
    if found.prompt != sizes.prompt or sizes.pooled not in (None, found.pooled):
        raise UserError(
            f"the images' texts have {_described(found)}, but {model} takes {_described(sizes)}; prepare them with the "
            "model's own text encoders"
        )


def check_tokens(text: TextEmbeddings, tokens: int | None, *, name: str) -> None:
    """Compares a text's length with that of the texts that a model was trained with.

    Args:
        text: Of one text or of several.
        tokens: Of the training's; None where it had no texts.
        name: Whose text it is, for messages.

    Raises:
        UserError: They differ.
    """
    found = text.prompt.shape[-2]
    if tokens not in (None, found):
        raise UserError(
            f"{name}: {found} text tokens, but the model was trained with {tokens}; encode texts to as many"
        )


def _described(sizes: TextSizes) -> str:
    pooled = "no pooled one" if sizes.pooled is None else f"a pooled one of {sizes.pooled}"
    return f"embeddings of {sizes.prompt} channels and {pooled}"


def _read(found: dict[str, Tensor], name: str, path: Path, channels: int, *, ndim: int) -> Tensor:
    if name not in found:
        raise ValueError(f"{path} lacks {name}; it holds {', '.join(sorted(found)) or 'nothing'}")
    value = found[name].float()
    value = value[0] if value.ndim == ndim + 1 and value.shape[0] == 1 else value
    if value.ndim != ndim or value.shape[-1] != channels:
        expected = f"[tokens, {channels}]" if ndim == 2 else f"[{channels}]"
        raise ValueError(f"{name} in {path} has shape {list(value.shape)}; expected {expected}")
    return value
