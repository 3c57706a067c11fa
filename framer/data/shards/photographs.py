"""The list of the photographs that shards were made of, by content, which a folder of shards keeps."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from framer.data.shards.manifest import read_manifest
from framer.errors import UserError
from framer.files import file_sha256

logger = logging.getLogger(__name__)

PHOTOGRAPHS_FILE: Final = "photographs.list"
MADE_FROM_KEY: Final = "photographs"
"""Of the manifest's ``made_from``; holds the hash of the list."""

_HASH: Final = re.compile(rb"\0([0-9a-f]{64})\n")


def photograph_list(paths: Sequence[Path]) -> bytes:
    """File name and SHA-256 of each photograph; names can hold line breaks, but no zero byte.

    Raises:
        OSError: A photograph cannot be read.
    """
    return b"".join(os.fsencode(path.name) + f"\0{file_sha256(path)}\n".encode() for path in paths)


def made_from_photographs(listed: bytes, count: int) -> str:
    """What ``made_from`` says of a list of photographs."""
    return f"{count} files, SHA-256 {hashlib.sha256(listed).hexdigest()}"


def photograph_hashes(folder: Path) -> frozenset[str]:
    """The SHA-256 of each photograph that shards were made of; none where they were made of another project's pairs.

    A missing list, as in a copy without it, is a warning.

    Raises:
        UserError: The manifest is missing or damaged, or the list is not that of the shards.
    """
    stated = read_manifest(folder).made_from.get(MADE_FROM_KEY)
    path = folder / PHOTOGRAPHS_FILE
    if stated is None:
        return frozenset()
    try:
        listed = path.read_bytes()
    except FileNotFoundError:
        logger.warning(
            "%s is missing: that no evaluation photograph was trained on is not checked; the same 'framer prepare' "
            "command writes it again",
            path,
        )
        return frozenset()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    hashes = [found.decode() for found in _HASH.findall(listed)]
    if made_from_photographs(listed, len(hashes)) != stated:
        raise UserError(f"{path} is damaged: it is not the list of the manifest; run the same 'framer prepare' command")
    return frozenset(hashes)
