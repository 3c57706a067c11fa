"""The texts that images are restored with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from framer.data.texts.captions import captions_from_text_files
from framer.errors import UserError
from framer.inference.jobs import Job
from framer.inference.restore import Prompt
from framer.models.text import TextEmbeddings, TextSizes, check_tokens

Encode = Callable[[Sequence[str]], TextEmbeddings]
"""Texts to their embeddings, ``[B, T, D]`` and ``[B, P]`` or None."""


@dataclass(frozen=True)
class Prompts:
    """Makes the prompt of each image.

    Texts are encoded when their image's turn comes, so that memory does not grow with the number of images; the last
    few are kept.

    Args:
        encode: The text encoder.
        sizes: Of the text embeddings that the model takes.
        tokens: Of the texts that it was trained with; None where it had none.
        guidance_scale: See :class:`Prompt`.
        negative: The negative text.
    """

    encode: Encode
    sizes: TextSizes
    tokens: int | None
    guidance_scale: float = 1.0
    negative: str = ""
    _embed: Callable[[str], TextEmbeddings] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_embed", lru_cache(maxsize=8)(self._encoded))

    def of(self, text: str) -> Prompt:
        """The prompt of a text.

        Raises:
            UserError: The encoder is not one for the model, or the guidance scale is not finite.
        """
        negative = self._embed(self.negative) if self.guidance_scale != 1 else None
        prompt = Prompt(self._embed(text), negative, self.guidance_scale)
        prompt.check()
        return prompt

    def _encoded(self, text: str) -> TextEmbeddings:
        found = self.encode([text])
        channels, pooled = found.prompt.shape[-1], None if found.pooled is None else found.pooled.shape[-1]
        if channels != self.sizes.prompt or (self.sizes.pooled is not None and pooled != self.sizes.pooled):
            raise UserError(
                f"the text encoder makes embeddings of {channels} channels, pooled {pooled}; the model takes "
                f"{self.sizes.prompt}, pooled {self.sizes.pooled}: give the encoder that it was trained with"
            )
        check_tokens(found, self.tokens, name="the text encoder")
        return TextEmbeddings(found.prompt[0], None if found.pooled is None else found.pooled[0])


def read_prompts(folder: Path, jobs: Sequence[Job]) -> dict[str, str]:
    """Texts by the jobs' keys, from ``<key>.txt`` in a folder, see :func:`captions_from_text_files`.

    Raises:
        UserError: The folder or a file is missing, a file is no UTF-8, or two images have the same text's name.
    """
    if not folder.is_dir():
        raise UserError(f"--prompts: {folder} is not a folder")
    sources: dict[str, Path] = {}
    for job in jobs:
        if sources.setdefault(job.key, job.source) != job.source:
            raise UserError(
                f"--prompts: {sources[job.key]} and {job.source} would both have the text {job.key}.txt; rename one"
            )
    return captions_from_text_files(sources, folder)
