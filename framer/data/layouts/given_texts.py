"""Embeddings that a folder already has, as a text store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from framer.data.layouts.base import Layout
from framer.data.layouts.check import CheckedFolder, digest_of_embeddings, read_embeddings
from framer.data.texts.manifest import DTYPES, StoredDtype
from framer.data.texts.store import TextStore, write_text_store
from framer.models.text import TextEmbeddings, TextSizes
from framer.models.text_encoders import TextEncoder

_EMPTY: Final = ""


class GivenEmbeddings(TextEncoder):
    """Looks embeddings of known texts up in the files that hold them.

    Args:
        layout: Layout of the folder.
        files: By text, the files of its embeddings by subfolder; the empty text is among them.
        identity: What the embeddings are.

    Raises:
        UserError: The embeddings of the empty text cannot be read.
    """

    def __init__(self, layout: Layout, files: Mapping[str, Mapping[str, Path]], *, identity: str) -> None:
        self._layout = layout
        self._files = files
        self._identity = identity
        prompt, pooled = read_embeddings(layout, files[_EMPTY], None)
        assert pooled is not None
        self._shape = (prompt.shape[0], prompt.shape[1])
        self._pooled = pooled.shape[0]

    @property
    def identity(self) -> str:
        """Names the embeddings by their values."""
        return self._identity

    @property
    def sizes(self) -> TextSizes:
        """Channels of the embeddings."""
        return TextSizes(self._shape[1], self._pooled)

    @property
    def tokens(self) -> int:
        """Tokens of each text."""
        return self._shape[0]

    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        """The embeddings that the files hold, ``[B, T, D]`` and ``[B, P]`` in float32.

        Raises:
            KeyError: A text is not known.
            UserError: A file can no longer be read.
        """
        found = [read_embeddings(self._layout, self._files[text], self._shape) for text in texts]
        prompts = torch.stack([each.prompt.float() for each in found])
        return TextEmbeddings(prompts, torch.stack([each.pooled.float() for each in found if each.pooled is not None]))


def write_given_texts(checked: CheckedFolder, folder: Path) -> TextStore:
    """Writes the embeddings of a folder into a text store, in the precision that they were saved in.

    The store has one row for samples whose text and embeddings are the same. Embeddings that differ although their
    texts do not, or that have no text, are told apart in the store by their samples' names.

    Args:
        checked: The folder; it has embeddings.
        folder: Where the store goes.

    Returns:
        The store; its keys are the samples' names.

    Raises:
        UserError: The folder of the store holds something else, or a file can no longer be read.
    """
    layout, null_files = checked.folder.layout, checked.folder.null_tensors
    null = digest_of_embeddings(read_embeddings(layout, null_files, None))
    digests, dtypes, files = {_EMPTY: null.sha256}, set(null.dtypes), {_EMPTY: dict(null_files)}
    texts: dict[str, str] = {}
    for record, found in zip(checked.folder.records, checked.records, strict=True):
        assert found.text is not None
        dtypes |= found.text.dtypes
        text = next(
            text
            for text in _candidates(found.caption, record.name)
            if digests.setdefault(text, found.text.sha256) == found.text.sha256
        )
        files.setdefault(text, record.paths)
        texts[record.name] = text
    content = "".join(f"{text}\0{digest}\n" for text, digest in sorted(digests.items()))
    identity = f"embeddings of a {layout.name} folder, SHA-256 {hashlib.sha256(content.encode()).hexdigest()}"
    return write_text_store(
        folder, texts, GivenEmbeddings(layout, files, identity=identity), dtype=_lossless(frozenset(dtypes))
    )


def _candidates(caption: str | None, name: str) -> Iterator[str]:
    """Texts for a sample's row, of which the first that no other embeddings have is taken."""
    if caption is not None:
        yield caption
    number = 1
    while True:
        yield f"{caption or ''} [{name}]".strip() + (f" [{number}]" if number > 1 else "")
        number += 1


def _lossless(dtypes: frozenset[torch.dtype]) -> StoredDtype:
    """The smallest precision that keeps values of all these dtypes as they are."""
    return next((name for name, dtype in DTYPES.items() if dtypes == {dtype}), "fp32")
