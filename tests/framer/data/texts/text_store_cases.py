"""An encoder of texts without a model, and captions for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from framer.data.texts.store import TextStore, write_text_store
from framer.models.text import TextEmbeddings, TextSizes
from framer.models.text_encoders import TextEncoder

CAPTIONS = {
    **{f"street/{number:02d}": f"caption {number % 13}" for number in range(20)},
    "no text": "",
    "umlaut/ä": "Grüße “aus” Köln\nund Bonn",
}
"""Fifteen distinct ones with the empty text."""


class HashedTexts(TextEncoder):
    """Numbers that are drawn from the text's hash."""

    tokens = 3

    def __init__(self, *, pooled: bool = True, identity: str = "hashes", factor: float = 1.0) -> None:
        self._sizes = TextSizes(5, 4 if pooled else None)
        self._identity = identity
        self._factor = factor
        self.encoded: list[str] = []

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def sizes(self) -> TextSizes:
        return self._sizes

    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        self.encoded += texts
        found = [embeddings_of(text, self._factor) for text in texts]
        pooled = torch.stack([each.pooled for each in found if each.pooled is not None])
        return TextEmbeddings(torch.stack([each.prompt for each in found]), pooled if self.sizes.pooled else None)

    def too_long(self, texts: Sequence[str]) -> list[str]:
        return [text for text in texts if len(text) > 20]


def embeddings_of(text: str, factor: float = 1.0) -> TextEmbeddings:
    """``[3, 5]`` and ``[4]``."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    generator = torch.Generator().manual_seed(seed)
    prompt, pooled = (factor * torch.randn(shape, generator=generator) for shape in ((3, 5), (4,)))
    return TextEmbeddings(prompt, pooled)


def make_store(folder: Path) -> TextStore:
    """Four files of four rows at most."""
    return write_text_store(folder, CAPTIONS, HashedTexts(), rows_per_file=4)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
