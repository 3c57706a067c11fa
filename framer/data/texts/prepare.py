"""Captions and embeddings of photographs, all as options of a command ask for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from framer.data.texts.captions import (
    captions_from_model,
    captions_from_text_files,
    null_captions,
    without_forbidden_sentences,
)
from framer.data.texts.keys import photograph_key, photographs_by_key
from framer.data.texts.manifest import StoredDtype
from framer.errors import UserError
from framer.listing import some_of

if TYPE_CHECKING:
    from framer.data.texts.store import TextStore
    from framer.models.transformers_folders import Precision

logger = logging.getLogger(__name__)

NULL_CAPTIONS: Final = "null"
MODEL_PREFIX: Final = "model:"
CACHE_FILE: Final = "captions.jsonl"
"""What a captioning model said of each photograph, in the folder of the texts."""


class PreparedTexts(NamedTuple):
    """Texts of photographs."""

    captions: dict[str, str]
    """By the photograph's key, see ``framer.data.texts.keys``."""
    store: TextStore | None
    """Their embeddings; None where there is no text encoder."""


def prepare_texts(
    photographs: Sequence[Path],
    root: Path | None,
    folder: Path,
    *,
    captions: str,
    encoder_folder: Path | None,
    device: torch.device,
    precision: Precision = "fp32",
    tokens: int | None = None,
    dtype: StoredDtype = "fp16",
    prompt: str | None = None,
    before_encoding: Callable[[Mapping[str, str]], None] | None = None,
) -> PreparedTexts:
    """Captions photographs and encodes the captions; what an interrupted call has done is kept by the next one.

    Args:
        photographs: The files.
        root: The folder that was searched for them; None where they lie in no common one, as the bundled ones.
        folder: Where the texts go: the store, and what a captioning model said.
        captions: ``null`` for empty texts, a folder of text files, or ``model:FOLDER`` for a captioning model, whose
            sentences about focus, blur, depth and background are dropped, and line breaks made spaces.
        encoder_folder: A diffusers pipeline with the text encoders; None for captions alone.
        device: Where the models run, one after the other.
        precision: Of the models.
        tokens: Text tokens, see ``framer.models.text_encoders.load_text_encoder``.
        dtype: How embeddings are stored.
        prompt: What the captioning model is told, see ``framer.models.captioner.ImageTextCaptioner``.
        before_encoding: Called with the captions before any is encoded, to refuse them.

    Returns:
        Captions, and the store.

    Raises:
        MissingExtraError: A library is not installed.
        UserError: Texts are missing or damaged, a model cannot be loaded, or the folder holds texts of something else.
    """
    from framer.data.texts.store import check_text_encoder, write_text_store
    from framer.models.text_encoders import load_text_encoder

    encoder = None
    if encoder_folder is not None:
        encoder = load_text_encoder(encoder_folder.expanduser(), device=device, precision=precision, tokens=tokens)
        check_text_encoder(folder, encoder, dtype=dtype)
    found = _captions(photographs, root, folder, captions, device=device, precision=precision, prompt=prompt)
    if before_encoding is not None:
        before_encoding(found)
    return PreparedTexts(found, None if encoder is None else write_text_store(folder, found, encoder, dtype=dtype))


def captions_kind(captions: str) -> str:
    """What gives the captions: ``null``, ``text files`` or ``model``; see :func:`prepare_texts`."""
    if captions == NULL_CAPTIONS:
        return "null"
    return "model" if captions.startswith(MODEL_PREFIX) else "text files"


def _captions(
    photographs: Sequence[Path],
    root: Path | None,
    folder: Path,
    captions: str,
    *,
    device: torch.device,
    precision: Precision,
    prompt: str | None,
) -> dict[str, str]:
    if captions == NULL_CAPTIONS:
        return null_captions(photograph_key(path, root) for path in photographs)
    by_key = photographs_by_key(photographs, root)
    if not captions.startswith(MODEL_PREFIX):
        return captions_from_text_files(by_key, Path(captions).expanduser())
    model = captions.removeprefix(MODEL_PREFIX)
    if not model:
        raise UserError(f"--captions: {captions} names no folder; expected {MODEL_PREFIX}FOLDER")
    from framer.models.captioner import ImageTextCaptioner

    captioner = ImageTextCaptioner(Path(model).expanduser(), device=device, precision=precision, prompt=prompt)
    said = captions_from_model(by_key, captioner, folder / CACHE_FILE)
    kept = {key: " ".join(without_forbidden_sentences(caption).split()) for key, caption in said.items()}
    if emptied := [key for key in kept if said[key] and not kept[key]]:
        logger.warning(
            "%d captions are about focus, blur, depth or background alone, and are empty without: %s",
            len(emptied),
            some_of(emptied),
        )
    return kept
