"""What the manifests of shards and of texts have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from framer.errors import UserError
from framer.extras import require
from framer.files import file_sha256

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

Named = TypeVar("Named")


class Record(BaseModel):
    """A part of a manifest: immutable, refuses unknown keys and does not coerce types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


def fingerprint_of(made_from: dict[str, Any]) -> str:
    """SHA-256 of a mapping of JSON values, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def check_fingerprint(fingerprint: str, made_from: dict[str, Any]) -> None:
    """Compares what a manifest's files were made from with its fingerprint.

    Raises:
        ValueError: They do not belong together.
    """
    if fingerprint_of(made_from) != fingerprint:
        raise ValueError("the fingerprint is not that of made_from")


def damaged(path: Path, error: ValidationError) -> UserError:
    """The error that a manifest which does not fit its class leads to; tells of the first problem."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return UserError(f"{path} is damaged: {f'{where}: ' if where else ''}{message}")


def file_problem(path: Path, *, size: int, sha256: str) -> str | None:
    """What is wrong with a file, in words; None if it is as it was written.

    Args:
        path: The file.
        size: What the manifest says of it, in bytes.
        sha256: What the manifest says of its content.
    """
    try:
        if (found := path.stat().st_size) != size:
            return f"{path}: {found} bytes instead of the {size} of the manifest"
        if file_sha256(path) != sha256:
            return f"{path}: the content is not what was written: its SHA-256 is not that of the manifest"
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return None


def verify_all(named: Sequence[Named], problem_of: Callable[[Named], str | None], *, what: str, again: str) -> None:
    """Looks at all that a manifest names, with a progress bar.

    Args:
        named: The manifest's records of files.
        problem_of: What is wrong with what a record names, in words; None if it is as it was written.
        what: What the records name, in the plural, for messages.
        again: The clause of a message that says what to run to have them written anew.

    Raises:
        UserError: Some are missing or changed; names each.
    """
    bar = require("tqdm", extra="train").tqdm(named, desc=f"verify {what}", unit="file")
    problems = [problem for record in bar if (problem := problem_of(record)) is not None]
    if problems:
        listing = "\n  ".join(problems)
        raise UserError(f"{len(problems)} of {len(named)} {what} are damaged; {again} to make them anew:\n  {listing}")
