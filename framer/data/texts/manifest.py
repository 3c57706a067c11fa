"""``texts.json``: which texts a store holds, of which photographs, and what their embeddings were made with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import torch
from pydantic import Field, ValidationError, model_validator

from framer.config.types import NonNegativeInt, PositiveInt
from framer.data.manifests import Record, Sha256, check_fingerprint, damaged
from framer.errors import UserError

MANIFEST_FILE: Final = "texts.json"
UNFINISHED_FILE: Final = "texts.unfinished.json"
"""The files written so far; the manifest takes its place."""

StoredDtype = Literal["fp32", "fp16", "bf16"]
DTYPES: Final[dict[StoredDtype, torch.dtype]] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class TextFileRecord(Record):
    """One file of embeddings."""

    file: Annotated[str, Field(pattern=r"^texts-[0-9]{6,}\.safetensors$")]
    rows: PositiveInt
    bytes: PositiveInt
    sha256: Sha256


class TextProgress(Record):
    """A store that is being written."""

    format_version: Literal[1]
    made_from: dict[str, Any]
    """Everything that the files' bytes depend on."""
    files: list[TextFileRecord]


class TextManifest(Record):
    """A finished store."""

    format_version: Literal[1]
    fingerprint: Sha256
    """SHA-256 of ``made_from``."""
    made_from: dict[str, Any]
    """Everything that the files' bytes depend on."""
    dtype: StoredDtype
    tokens: PositiveInt
    prompt_channels: PositiveInt
    pooled_channels: PositiveInt | None
    captions: Annotated[list[str], Field(min_length=1)]
    """By row; the first is the empty text."""
    keys: dict[str, NonNegativeInt]
    """Row of each photograph's text."""
    files: Annotated[list[TextFileRecord], Field(min_length=1)]
    """The rows in order, each in one file."""

    @model_validator(mode="after")
    def _parts_agree(self) -> TextManifest:
        check_fingerprint(self.fingerprint, self.made_from)
        rows = len(self.captions)
        if self.captions[0] != "":
            raise ValueError("the first caption is not the empty text")
        if any(row >= rows for row in self.keys.values()):
            raise ValueError(f"keys name rows beyond the {rows} captions")
        captions = {key: self.captions[row] for key, row in self.keys.items()}
        if describe_captions(captions) != self.made_from.get("captions") or rows_of(captions) != self.captions:
            raise ValueError("captions and keys are not those that made_from describes")
        sizes = [self.tokens, self.prompt_channels, self.pooled_channels]
        if self.made_from.get("dtype") != self.dtype or self.made_from.get("sizes") != sizes:
            raise ValueError("dtype, tokens or channels are not those of made_from")
        if [record.file for record in self.files] != [file_name(number) for number in range(len(self.files))]:
            raise ValueError("the files are not numbered in order")
        if (held := sum(record.rows for record in self.files)) != rows:
            raise ValueError(f"there are {rows} captions, {held} of them in files")
        return self


def file_name(number: int) -> str:
    """Name of the file with a number."""
    return f"texts-{number:06d}.safetensors"


def rows_of(captions: Mapping[str, str]) -> list[str]:
    """The distinct captions of photographs, the empty text first, then in the order of the keys."""
    return list(dict.fromkeys(["", *(captions[key] for key in sorted(captions))]))


def describe_captions(captions: Mapping[str, str]) -> str:
    """How many photographs there are, and a hash of their keys and captions."""
    content = json.dumps(sorted(captions.items())).encode()
    return f"of {len(captions)} photographs, SHA-256 {hashlib.sha256(content).hexdigest()}"


Parsed = TypeVar("Parsed", TextManifest, TextProgress)


def parse(path: Path, kind: type[Parsed]) -> Parsed:
    """Reads a manifest, or the record of an unfinished store.

    Raises:
        UserError: It cannot be read or is damaged.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValidationError as error:
        raise damaged(path, error) from None


def as_json(content: TextManifest | TextProgress) -> str:
    """The content of the file."""
    return json.dumps(content.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
