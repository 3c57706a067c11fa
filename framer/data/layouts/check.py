"""Reading every file of a matched folder before anything is written."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from framer.data.buckets import CropSize
from framer.data.images import read_image
from framer.data.layouts.base import (
    GT,
    LATENT_HR,
    LATENT_LR,
    LR,
    POOLED_PROMPT_EMBEDS,
    PROMPT_EMBEDS,
    SR_BICUBIC,
    Layout,
    LayoutFolder,
    LayoutRecord,
)
from framer.data.layouts.content import is_enlargement, shows_another_image
from framer.data.layouts.matching import LISTED
from framer.data.layouts.tensors import read_tensor
from framer.data.workers import leave_signals_to_parent, loaded
from framer.errors import UserError
from framer.extras import require
from framer.files import file_sha256
from framer.listing import some_of
from framer.models.text import TextEmbeddings

SCALES: Final[tuple[int, ...]] = (2, 4, 8)

_UNREADABLE = "files that cannot be used"
_SIZES = "images of the wrong size"
_OTHER_IMAGE = "lr shows another image than gt (--no-content-check turns this check off)"
_NO_ENLARGEMENT = "sr_bicubic is not lr enlarged (--no-content-check turns this check off)"


class Problem(NamedTuple):
    """Something wrong with one sample."""

    kind: str
    """What is wrong, as the headline of all problems like it."""
    detail: str


class EmbeddingsDigest(NamedTuple):
    """A text's embeddings in brief."""

    sha256: str
    """Of their values, whatever the precision."""
    dtypes: frozenset[torch.dtype]
    """That they were saved in."""


@dataclass(frozen=True)
class CheckedRecord:
    """What was found in the files of one sample.

    Attributes:
        name: The sample's name.
        size: Height and width of its HR image; None where it could not be told.
        scale: Factor between HR and LR; None where it could not be told.
        caption: Its text; None where there is none.
        text: What tells its embeddings from others'; None where there are none.
        sha256: Of the files that are carried over.
        problems: What is wrong with it.
    """

    name: str
    size: CropSize | None = None
    scale: int | None = None
    caption: str | None = None
    text: EmbeddingsDigest | None = None
    sha256: str = ""
    problems: list[Problem] = field(default_factory=list)


class CheckedFolder(NamedTuple):
    """A folder whose files have all been read and found right."""

    folder: LayoutFolder
    scale: int
    """Factor between HR and LR."""
    records: list[CheckedRecord]
    """In the order of the folder's records."""


def check_folder(
    folder: LayoutFolder, *, carried: Iterable[str], content_check: bool = True, workers: int = 0
) -> CheckedFolder:
    """Reads every file of a folder.

    Args:
        folder: The folder.
        carried: The subfolders that are carried over, whose files the records' hashes are of.
        content_check: Whether images are compared with each other: an LR image with its HR image, and an enlarged
            one with its LR image.
        workers: Processes that read; 0 reads in this one.

    Raises:
        UserError: Files cannot be read; images have wrong sizes or show something else than their partners; tensors
            have wrong shapes, dtypes or values, or hold anything but tensors. Lists them all by kind.
    """
    text_shape = None
    if folder.null_tensors:
        tokens, channels = read_embeddings(folder.layout, folder.null_tensors, None).prompt.shape
        text_shape = (tokens, channels)
    checks = _Checks(folder, frozenset(carried), content_check, text_shape)
    loader: DataLoader[CheckedRecord] = DataLoader(
        checks,
        batch_size=None,
        sampler=range(len(folder.records)),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),
    )
    progress = require("tqdm", extra="train").tqdm
    records = list(progress(loaded(loader), total=len(folder.records), desc="check", unit="sample"))
    problems = [problem for record in records for problem in record.problems]
    scales: defaultdict[int, list[str]] = defaultdict(list)
    for record in records:
        if record.scale is not None:
            scales[record.scale].append(record.name)
    if len(scales) > 1:
        most = max(scales, key=lambda scale: len(scales[scale]))
        headline = f"pairs with another factor than the {most} of most"
        others = [(name, scale) for scale, names in scales.items() for name in names if scale != most]
        problems += [Problem(headline, f"{name} ({scale})") for name, scale in sorted(others)]
    if problems:
        raise UserError(f"{folder.root}: some samples cannot be used; nothing was written:\n{_by_kind(problems)}")
    return CheckedFolder(folder, next(iter(scales)), records)


def read_caption(path: Path) -> str:
    """Reads a text file, without the white space around its text.

    Raises:
        UserError: It cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} does not decode") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def read_embeddings(layout: Layout, paths: Mapping[str, Path], text_shape: tuple[int, int] | None) -> TextEmbeddings:
    """Reads a text's embeddings as they were saved.

    Args:
        layout: The layout.
        paths: By subfolder, their files.
        text_shape: Tokens and channels that the prompt's embeddings must have; None for any number of tokens.

    Returns:
        ``[T, D]`` and ``[P]``.

    Raises:
        UserError: A file is damaged, or a tensor has another shape.
    """
    return TextEmbeddings(_read_prompt(layout, paths, text_shape), _read_pooled(layout, paths))


def _read_prompt(layout: Layout, paths: Mapping[str, Path], text_shape: tuple[int, int] | None) -> Tensor:
    return read_tensor(paths[PROMPT_EMBEDS], text_shape or (None, layout.prompt_channels))


def _read_pooled(layout: Layout, paths: Mapping[str, Path]) -> Tensor:
    return read_tensor(paths[POOLED_PROMPT_EMBEDS], (layout.pooled_channels,))


def digest_of_embeddings(text: TextEmbeddings) -> EmbeddingsDigest:
    """What tells embeddings from others."""
    digest = hashlib.sha256()
    tensors = [tensor for tensor in text if tensor is not None]
    for tensor in tensors:
        digest.update(tensor.float().numpy().tobytes())
    return EmbeddingsDigest(digest.hexdigest(), frozenset(tensor.dtype for tensor in tensors))


def read_latents(layout: Layout, path: Path, size: CropSize) -> Tensor:
    """Reads the latents of an image as they were saved, ``[C, h, w]``.

    Args:
        layout: The layout.
        path: The file.
        size: Height and width of the sample's HR image.

    Raises:
        UserError: The file is damaged, or the tensor has another shape.
    """
    downscale = layout.latent_downscale
    return read_tensor(path, (layout.latent_channels, size.height // downscale, size.width // downscale))


@dataclass(frozen=True)
class _Checks(Dataset[CheckedRecord]):
    folder: LayoutFolder
    carried: frozenset[str]
    content_check: bool
    text_shape: tuple[int, int] | None

    def __getitem__(self, index: int) -> CheckedRecord:
        record = self.folder.records[index]
        problems: list[Problem] = []
        size, scale = self._check_images(record, problems)
        caption, text = None, None
        layout, digest = self.folder.layout, hashlib.sha256()
        if self.folder.has(layout.texts):
            with _noted(problems):
                caption = read_caption(record.paths[layout.texts])
        if self.folder.has(PROMPT_EMBEDS):
            read: list[Tensor] = []
            with _noted(problems):
                read.append(_read_prompt(layout, record.paths, self.text_shape))
            with _noted(problems):
                read.append(_read_pooled(layout, record.paths))
            if len(read) == 2:
                text = digest_of_embeddings(TextEmbeddings(*read))
        for subfolder in (LATENT_HR, LATENT_LR):
            if size is not None and self.folder.has(subfolder):
                with _noted(problems):
                    read_latents(layout, record.paths[subfolder], size)
        for subfolder in sorted(self.carried):
            with _noted(problems, record.paths[subfolder]):
                digest.update(f"{subfolder}\0{file_sha256(record.paths[subfolder])}\n".encode())
        return CheckedRecord(record.name, size, scale, caption, text, digest.hexdigest(), problems)

    def _check_images(self, record: LayoutRecord, problems: list[Problem]) -> tuple[CropSize | None, int | None]:
        images = {}
        for subfolder in (GT, LR, SR_BICUBIC):
            if subfolder in record.paths:
                with _noted(problems):
                    images[subfolder] = read_image(record.paths[subfolder])
        if GT not in images:
            return None, None
        gt, size = images[GT], CropSize(*images[GT].shape[:2])
        downscale = self.folder.layout.latent_downscale
        if self.folder.has(LATENT_HR) and (size.height % downscale or size.width % downscale):
            problems.append(Problem(_SIZES, f"{record.name}: gt has {_wxh(size)}, no multiple of {downscale}"))
        enlarged = images.get(SR_BICUBIC)
        if enlarged is not None and enlarged.shape != gt.shape:
            found = _wxh(CropSize(*enlarged.shape[:2]))
            problems.append(Problem(_SIZES, f"{record.name}: sr_bicubic has {found}, gt {_wxh(size)}"))
            enlarged = None
        if LR not in images:
            return size, None
        lr, lr_size = images[LR], CropSize(*images[LR].shape[:2])
        scale = next((s for s in SCALES if (lr_size.height * s, lr_size.width * s) == size), None)
        if scale is None:
            expected = " or ".join(f"1/{s}" for s in SCALES)
            detail = f"{record.name}: lr has {_wxh(lr_size)}, gt {_wxh(size)}; expected {expected} of that"
            problems.append(Problem(_SIZES, detail))
        elif self.content_check:
            if shows_another_image(gt, lr):
                problems.append(Problem(_OTHER_IMAGE, record.name))
            if enlarged is not None and not is_enlargement(enlarged, lr):
                problems.append(Problem(_NO_ENLARGEMENT, record.name))
        return size, scale


@contextmanager
def _noted(problems: list[Problem], path: Path | None = None) -> Iterator[None]:
    """Keeps the error of reading one file, so that the others are read too."""
    try:
        yield
    except UserError as error:
        problems.append(Problem(_UNREADABLE, str(error)))
    except OSError as error:
        problems.append(Problem(_UNREADABLE, f"{path} cannot be read: {error.strerror or error}"))


def _as_it_is(record: Any) -> Any:
    return record


def _by_kind(problems: Sequence[Problem]) -> str:
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for problem in problems:
        kinds[problem.kind].append(problem.detail)
    lines: list[str] = []
    for kind, details in kinds.items():
        indent = "\n    "
        lines.append(f"  {len(details)} x {kind}:{indent}{some_of(details, LISTED, separator=indent)}")
    return "\n".join(lines)


def _wxh(size: CropSize) -> str:
    return f"{size.width}x{size.height}"
