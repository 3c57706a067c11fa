"""Embeddings of the texts of photographs, in files of which a row can be read by itself."""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from framer.data.manifests import file_problem, fingerprint_of, verify_all
from framer.data.outputs import sole_writer
from framer.data.texts.manifest import (
    DTYPES,
    MANIFEST_FILE,
    UNFINISHED_FILE,
    StoredDtype,
    TextFileRecord,
    TextManifest,
    TextProgress,
    as_json,
    describe_captions,
    file_name,
    parse,
    rows_of,
)
from framer.errors import UserError
from framer.extras import require
from framer.files import file_sha256, remove_partials, sync_folder, write_bytes, write_text
from framer.listing import some_of
from framer.models.text import POOLED, PROMPT, TextEmbeddings, TextSizes
from framer.models.text_encoders import TextEncoder

logger = logging.getLogger(__name__)

NULL_ROW: Final = 0
"""Row of the empty text in every store."""
ROWS_PER_FILE: Final = 256
# Fixed, because results of a batch can differ in the last bits from those of a batch of another size.
_BATCH: Final = 8
_AGAIN: Final = "run the command that wrote the texts again"


class TextStore:
    """A finished store. It can be pickled, and sent to processes that load data.

    Args:
        folder: The store.

    Attributes:
        folder: The store.
        fingerprint: SHA-256 of what the embeddings were made from.
        sizes: Channels of the embeddings.
        tokens: T.

    Raises:
        UserError: The manifest is missing or damaged, or a file is missing or of another size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = read_manifest(folder)
        for record in self._manifest.files:
            _check_size(folder, record)
        self.fingerprint = self._manifest.fingerprint
        self.sizes = TextSizes(self._manifest.prompt_channels, self._manifest.pooled_channels)
        self.tokens = self._manifest.tokens
        self._ends = list(itertools.accumulate(record.rows for record in self._manifest.files))
        self._open: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __len__(self) -> int:
        """Rows: distinct texts, with the empty one."""
        return len(self._manifest.captions)

    @property
    def keys(self) -> Mapping[str, int]:
        """Row of each photograph's text."""
        return self._manifest.keys

    @property
    def dtype(self) -> StoredDtype:
        """How embeddings are stored."""
        return self._manifest.dtype

    def row_of(self, key: str) -> int:
        """Row of a photograph's text.

        Args:
            key: See ``framer.data.texts.keys``.

        Raises:
            UserError: The store holds no text of such a photograph.
        """
        try:
            return self._manifest.keys[key]
        except KeyError:
            raise UserError(f"{self.folder} holds no text of the photograph {key}") from None

    def caption(self, row: int) -> str:
        """The text of a row.

        Raises:
            IndexError: There is no such row.
        """
        return self._manifest.captions[self._checked(row)]

    def embeddings(self, row: int) -> TextEmbeddings:
        """Embeddings of a row, ``[T, D]`` and ``[P]`` or None, in float32; only their bytes are read.

        Raises:
            IndexError: There is no such row.
            UserError: The file is damaged.
        """
        number = bisect.bisect_right(self._ends, self._checked(row))
        record = self._manifest.files[number]
        place = row - self._ends[number] + record.rows
        path = self.folder / record.file
        with _damage_named(path):
            if number not in self._open:
                _check_size(self.folder, record)  # reading behind the end of a mapped file would end the process
                self._open[number] = safe_open(path, framework="pt", device="cpu")
            file = self._open[number]
            prompt = self._read(file, PROMPT, place, [record.rows, self.tokens, self.sizes.prompt])
            if self.sizes.pooled is None:
                return TextEmbeddings(prompt, None)
            return TextEmbeddings(prompt, self._read(file, POOLED, place, [record.rows, self.sizes.pooled]))

    def _checked(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"{self.folder} has {len(self)} rows, there is no row {row}")
        return row

    def _read(self, file: Any, name: str, place: int, shape: list[int]) -> Tensor:
        stored = file.get_slice(name)
        if stored.get_shape() != shape:
            raise ValueError(f"{name} has shape {stored.get_shape()} instead of {shape}")
        # A copy where the file has float32 already: the tensor would be a view of the file.
        tensor: Tensor = stored[place].to(torch.float32, copy=True)
        return tensor


def read_manifest(folder: Path) -> TextManifest:
    """The manifest of a finished store.

    Raises:
        UserError: It is missing or damaged.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        state = "its texts are not finished" if (folder / UNFINISHED_FILE).is_file() else "it is no store of texts"
        raise UserError(f"{folder} has no {MANIFEST_FILE}: {state}; {_AGAIN}")
    return parse(path, TextManifest)


def verify_text_store(folder: Path) -> TextStore:
    """Reads every byte of a store and compares the hashes.

    Raises:
        UserError: The manifest is missing or damaged, or files are missing or changed; names each.
    """
    manifest = read_manifest(folder)
    verify_all(manifest.files, partial(_problem_of, folder), what="files of texts", again=_AGAIN)
    return TextStore(folder)


def write_text_store(
    folder: Path,
    captions: Mapping[str, str],
    encoder: TextEncoder,
    *,
    dtype: StoredDtype = "fp16",
    rows_per_file: int = ROWS_PER_FILE,
) -> TextStore:
    """Encodes the distinct captions of photographs, and the empty text, into a store.

    A file appears under its name when it is complete and on disk, and the manifest after all files; a call that was
    interrupted is finished by another one with the same arguments, which keeps the files whose hashes are right. The
    bytes depend on the arguments, as far as the encoder computes the same for the same texts.

    Args:
        folder: Where the store goes; made if needed.
        captions: By the photograph's key, see ``framer.data.texts.keys``.
        encoder: What encodes them.
        dtype: How embeddings are stored. fp16 keeps three more bits than bf16 in as many bytes; it is refused where a
            value is too large for it.
        rows_per_file: Texts in a file.

    Returns:
        The store.

    Raises:
        UserError: The folder holds a store that was made from something else, or another process writes into it; an
            embedding is not finite, or too large for ``dtype``; or the disk is full.
        ValueError: ``rows_per_file`` is below 1.
    """
    if rows_per_file < 1:
        raise ValueError(f"rows_per_file must be at least 1, got {rows_per_file}")
    rows = rows_of(captions)
    made_from = _without_captions(encoder, dtype, rows_per_file) | {"captions": describe_captions(captions)}
    with sole_writer(folder):
        earlier = _earlier_files(folder, made_from)
        remove_partials(folder)
        files = _write_all(folder, rows, encoder, TextProgress(format_version=1, made_from=made_from, files=earlier))
        manifest = TextManifest.model_validate(
            {
                "format_version": 1,
                "fingerprint": fingerprint_of(made_from),
                "made_from": made_from,
                "dtype": dtype,
                "tokens": encoder.tokens,
                "prompt_channels": encoder.sizes.prompt,
                "pooled_channels": encoder.sizes.pooled,
                "captions": rows,
                "keys": _rows_by_key(captions, rows),
                "files": files,
            }
        )
        write_text(folder / MANIFEST_FILE, as_json(manifest))
        (folder / UNFINISHED_FILE).unlink(missing_ok=True)
        sync_folder(folder)
    return TextStore(folder)


def check_text_encoder(
    folder: Path, encoder: TextEncoder, *, dtype: StoredDtype = "fp16", rows_per_file: int = ROWS_PER_FILE
) -> None:
    """Refuses a folder as :func:`write_text_store` would, as far as can be told before there are captions.

    Raises:
        UserError: The folder holds texts of another encoder, or stored otherwise; or its manifest is damaged.
    """
    _earlier_files(folder, _without_captions(encoder, dtype, rows_per_file), unknown="captions")


def _without_captions(encoder: TextEncoder, dtype: StoredDtype, rows_per_file: int) -> dict[str, Any]:
    return {
        "encoder": encoder.identity,
        "sizes": [encoder.tokens, *encoder.sizes],
        "dtype": dtype,
        "rows_per_file": rows_per_file,
    }


def _rows_by_key(captions: Mapping[str, str], rows: list[str]) -> dict[str, int]:
    numbers = {caption: row for row, caption in enumerate(rows)}
    return {key: numbers[captions[key]] for key in sorted(captions)}


def _write_all(folder: Path, rows: list[str], encoder: TextEncoder, progress: TextProgress) -> list[TextFileRecord]:
    earlier, per_file = progress.files, int(progress.made_from["rows_per_file"])
    dtype: StoredDtype = progress.made_from["dtype"]
    starts = range(0, len(rows), per_file)
    files: list[TextFileRecord] = []
    warned = False
    with require("tqdm", extra="train").tqdm(total=len(rows), desc="encode", unit="text") as bar:
        for number, start in enumerate(starts):
            texts = rows[start : start + per_file]
            record = earlier[number] if number < len(earlier) else None
            if record is not None and record.rows == len(texts) and _problem_of(folder, record) is None:
                bar.update(len(texts))
                bar.initial += len(texts)  # so that the rate is that of the texts encoded now
            else:
                if record is not None:
                    logger.warning("%s is missing or damaged and is written again", folder / record.file)
                if not warned:
                    _warn_of_long_texts(encoder, rows)
                    warned = True
                record = _write_file(folder / file_name(number), texts, encoder, dtype, bar)
                known = [*files, record, *earlier[number + 1 :]]
                write_text(folder / UNFINISHED_FILE, as_json(progress.model_copy(update={"files": known})))
            files.append(record)
    return files


def _warn_of_long_texts(encoder: TextEncoder, rows: list[str]) -> None:
    if long := encoder.too_long(rows):
        logger.warning(
            "%d of %d distinct texts have more tokens than the text encoder sees, and are cut: %s",
            len(long),
            len(rows),
            some_of(repr(text[:40] + "..." if len(text) > 40 else text) for text in long),
        )


def _write_file(path: Path, texts: list[str], encoder: TextEncoder, dtype: StoredDtype, bar: Any) -> TextFileRecord:
    parts: dict[str, list[Tensor]] = {PROMPT: []}
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        found = encoder.encode(batch)
        parts[PROMPT].append(_stored(found.prompt, dtype, batch))
        if found.pooled is not None:
            parts.setdefault(POOLED, []).append(_stored(found.pooled, dtype, batch))
        bar.update(len(batch))
    content = save({name: torch.cat(each) for name, each in parts.items()})
    write_bytes(path, content)
    return TextFileRecord(file=path.name, rows=len(texts), bytes=len(content), sha256=file_sha256(path))


def _stored(embeddings: Tensor, dtype: StoredDtype, texts: list[str]) -> Tensor:
    if not embeddings.isfinite().all():
        place = int((~embeddings.flatten(1).isfinite().all(dim=1)).nonzero()[0])
        raise UserError(f"the text encoder gave numbers that are not finite for the text {texts[place]!r}")
    stored = embeddings.to(DTYPES[dtype])
    if not stored.isfinite().all():
        largest = float(embeddings.abs().max())
        raise UserError(f"the text encoder gave {largest:g}, which is too large for {dtype}; store bf16 or fp32")
    return stored


def _earlier_files(folder: Path, made_from: dict[str, Any], unknown: str | None = None) -> list[TextFileRecord]:
    """The files that an earlier call with the same arguments left."""
    before: TextManifest | TextProgress
    if (folder / MANIFEST_FILE).is_file():
        before = parse(folder / MANIFEST_FILE, TextManifest)
    elif (folder / UNFINISHED_FILE).is_file():
        before = parse(folder / UNFINISHED_FILE, TextProgress)
    else:
        return []
    changed = [
        f"{key} {before.made_from.get(key)} (now {made_from.get(key)})"
        for key in sorted(before.made_from.keys() | made_from.keys())
        if key != unknown and before.made_from.get(key) != made_from.get(key)
    ]
    if changed:
        raise UserError(
            f"{folder} holds texts that were made from something else: {', '.join(changed)}; give another folder, or "
            "remove this one"
        )
    return before.files


def _problem_of(folder: Path, record: TextFileRecord) -> str | None:
    return file_problem(folder / record.file, size=record.bytes, sha256=record.sha256)


def _check_size(folder: Path, record: TextFileRecord) -> None:
    path = folder / record.file
    try:
        found = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {_AGAIN}") from None
    if found != record.bytes:
        raise UserError(f"{path}: {found} bytes instead of the {record.bytes} of the manifest; {_AGAIN}")


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; {_AGAIN}") from error
