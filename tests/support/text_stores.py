"""Text stores without text encoders: each text has random embeddings of its own."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from framer.data.texts.store import TextStore, write_text_store
from framer.models.text import TextEmbeddings, TextSizes
from framer.models.text_encoders import TextEncoder


class RandomEncoder(TextEncoder):
    """Embeddings drawn from a text's checksum.

    Args:
        prompt: Channels of a token.
        pooled: Channels of the pooled embedding, or None.
        tokens: Tokens of each text.
    """

    def __init__(self, *, prompt: int, pooled: int | None = None, tokens: int = 5) -> None:
        self._sizes = TextSizes(prompt, pooled)
        self._tokens = tokens

    @property
    def identity(self) -> str:
        return f"random numbers {self._sizes} {self._tokens}"

    @property
    def sizes(self) -> TextSizes:
        return self._sizes

    @property
    def tokens(self) -> int:
        return self._tokens

    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        prompt = [self._draw(text, self._tokens, self._sizes.prompt) for text in texts]
        pooled = None if self._sizes.pooled is None else [self._draw(text, self._sizes.pooled) for text in texts]
        return TextEmbeddings(torch.stack(prompt), None if pooled is None else torch.stack(pooled))

    @staticmethod
    def _draw(text: str, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))


def text_store(
    folder: Path, captions: Mapping[str, str], *, prompt: int, pooled: int | None = None, tokens: int = 5
) -> TextStore:
    """A store of captions, in float32."""
    encoder = RandomEncoder(prompt=prompt, pooled=pooled, tokens=tokens)
    return write_text_store(folder, captions, encoder, dtype="fp32")
