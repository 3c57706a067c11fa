"""Captions of photographs: from text files, from a captioning model, or empty."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from framer.data.images import read_image
from framer.data.outputs import sole_writer
from framer.data.texts.sentences import split_sentences
from framer.errors import UserError
from framer.extras import require
from framer.files import file_sha256, sync_folder, writing
from framer.listing import some_of

if TYPE_CHECKING:
    from framer.models.captioner import Captioner

logger = logging.getLogger(__name__)

_CACHE_KEYS: Final = ("photograph", "captioner", "caption")

# What a description says about how the photograph was taken, which a restored image shall not imitate.
_FORBIDDEN: Final = re.compile(r"focus|blur|\bdepths?\b|\bbackgrounds?\b", re.IGNORECASE)


def null_captions(keys: Iterable[str]) -> dict[str, str]:
    """The empty text for every photograph."""
    return dict.fromkeys(keys, "")


def captions_from_text_files(photographs: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Reads a text file for each photograph, matched by name.

    The file of the photograph ``street/a.png`` is ``street/a.txt`` below the folder, or, where the folder has no
    subfolders with texts, ``a.txt``. Surrounding white space is not part of a caption; an empty file is the empty text.

    Args:
        photographs: By key, see ``framer.data.texts.keys``.
        folder: The folder of text files, in UTF-8.

    Returns:
        Captions by key, in the order of the photographs.

    Raises:
        UserError: The folder cannot be read; or texts are missing, could be of several photographs, or are no UTF-8;
            names the first few.
    """
    texts = _text_files(folder)
    flat = all("/" not in name for name in texts)
    stems = Counter(key.rpartition("/")[2] for key in photographs)
    files: dict[str, Path] = {}
    missing: list[str] = []
    ambiguous: dict[str, list[str]] = defaultdict(list)
    for key in photographs:
        stem = key.rpartition("/")[2]
        if key in texts:
            files[key] = texts[key]
        elif not flat or stem not in texts:
            missing.append(f"{key}.txt")
        elif stems[stem] > 1:
            ambiguous[stem].append(key)
        else:
            files[key] = texts[stem]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(photographs)} photographs have no text in {folder}: {some_of(missing)}; write "
            "them, as empty files where there is nothing to say"
        )
    if ambiguous:
        stem = next(iter(ambiguous))
        both = [key for key in photographs if key.rpartition("/")[2] == stem]
        raise UserError(
            f"{folder / stem}.txt could be of several photographs: {some_of(both)}; put the texts into subfolders "
            f"as the photographs are, such as {both[-1]}.txt ({len(ambiguous)} such names)"
        )
    used = set(files.values())
    extra = [path for path in texts.values() if path not in used]
    if extra:
        logger.warning(
            "%d texts in %s are of no photograph and are left out: %s",
            len(extra),
            folder,
            some_of(path.relative_to(folder) for path in extra),
        )
    return {key: _read_text(path) for key, path in files.items()}


def _text_files(folder: Path) -> dict[str, Path]:
    """Text files below a folder by their path without suffix; hidden ones are no captions."""
    if not folder.is_dir():
        raise UserError(f"--captions: {folder} is no folder; expected a folder of text files, null, or model:FOLDER")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() != ".txt" or any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        name = relative.with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{found[name]} and {path} differ by their suffix alone; remove one")
        found[name] = path
    if not found:
        raise UserError(f"{folder} holds no text files (looked for .txt in it and below it)")
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").strip()  # editors on Windows write a byte-order mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; convert the file, for "
            "example with iconv"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def captions_from_model(photographs: Mapping[str, Path], captioner: Captioner, cache: Path) -> dict[str, str]:
    """Captions every photograph with a model, one after the other.

    Each caption is appended to the cache as soon as it is made and is on disk before the next one begins, so that an
    interrupted call goes on where it stopped. Equal photographs are captioned once.

    Args:
        photographs: By key, see ``framer.data.texts.keys``.
        captioner: The model.
        cache: A file of JSON lines with ``photograph`` (SHA-256 of the file), ``captioner`` (its identity) and
            ``caption``; made if needed. Lines of other captioners are left alone.

    Returns:
        Captions by key, in the order of the photographs.

    Raises:
        UserError: A photograph cannot be read, the cache cannot be read or written, or another process writes into its
            folder.
    """
    hashes = {key: _sha256(path) for key, path in photographs.items()}
    with sole_writer(cache.parent), _CaptionCache(cache, captioner.identity) as known:
        done = sum(sha256 in known.captions for sha256 in hashes.values())
        # Made before, they are no part of the rate.
        with require("tqdm", extra="train").tqdm(
            total=len(photographs), initial=done, desc="caption", unit="photograph", disable=done == len(photographs)
        ) as progress:
            for key, path in photographs.items():
                if hashes[key] not in known.captions:
                    known.add(hashes[key], captioner.caption(read_image(path)))
                    progress.update()
        return {key: known.captions[sha256] for key, sha256 in hashes.items()}


class _CaptionCache:
    """The captions of one captioner in a file of JSON lines, which may hold those of others too."""

    def __init__(self, path: Path, captioner: str) -> None:
        self.captions: dict[str, str] = {}
        self._path = path
        self._captioner = captioner

    def __enter__(self) -> _CaptionCache:
        with writing(self._path):
            self._file = self._path.open("a+b")
            sync_folder(self._path.parent)
        self._file.seek(0)
        complete, _, torn = self._file.read().rpartition(b"\n")
        if torn:  # the process was killed while it wrote this line
            self._file.truncate(len(complete) + 1 if complete else 0)
        try:
            for number, line in enumerate(complete.splitlines(), start=1):
                self._take(number, line)
        except UserError:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, photograph: str, caption: str) -> None:
        line = json.dumps(dict(zip(_CACHE_KEYS, (photograph, self._captioner, caption), strict=True)))
        with writing(self._path):
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self.captions[photograph] = caption

    def _take(self, number: int, line: bytes) -> None:
        try:
            content = json.loads(line)
            photograph, captioner, caption = (content[key] for key in _CACHE_KEYS)
            if not all(isinstance(value, str) for value in (photograph, captioner, caption)):
                raise TypeError("expected texts")
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self._path} is damaged in line {number}; remove that line and run again") from None
        if captioner == self._captioner:
            self.captions[photograph] = caption


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def without_forbidden_sentences(text: str) -> str:
    """Drops sentences about focus, blur, depth (of field) and background, as DiT4SR does.

    Such words describe how a photograph was taken; a model that reads them learns to render blur.

    Args:
        text: A description in English, of any number of sentences and lines.

    Returns:
        The other sentences, joined by single spaces; the text itself where none is dropped.
    """
    sentences = split_sentences(text)
    kept = [sentence for sentence in sentences if not _FORBIDDEN.search(sentence)]
    return text if len(kept) == len(sentences) else " ".join(kept)
