"""``shards.json``: what a folder of shards holds, and what it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from framer.config.data import Degradation
from framer.config.types import NonNegativeInt, PositiveInt
from framer.data.buckets import CropSize
from framer.data.manifests import Record, Sha256, check_fingerprint, damaged, fingerprint_of
from framer.errors import UserError

FORMAT_VERSION: Final = 2
MANIFEST_FILE: Final = "shards.json"
TEXTS_FOLDER: Final = "texts"
"""The subfolder that holds the samples' texts."""
UNFINISHED_FILE: Final = "shards.unfinished.json"
"""A manifest of the shards written so far; the finished manifest takes its place."""

LatentsDtype = Literal["fp32", "fp16"]


class ShardRecord(Record):
    """One tar file and the index beside it."""

    file: Annotated[str, Field(pattern=r"^[0-9]{6,}\.tar$")]
    """Name of the tar file in the folder."""
    height: PositiveInt
    """Height of the samples' HR images, in pixels; with the width it tells the bucket."""
    width: PositiveInt
    samples: PositiveInt
    bytes: PositiveInt
    """Size of the tar file."""
    sha256: Sha256
    index_bytes: PositiveInt
    index_sha256: Sha256

    @property
    def index_file(self) -> str:
        """Name of the file of offsets."""
        return self.file.removesuffix(".tar") + ".index.npy"

    @property
    def size(self) -> CropSize:
        """Size of the samples' HR images."""
        return CropSize(self.height, self.width)


class BucketRecord(Record):
    """One size of samples."""

    height: PositiveInt
    width: PositiveInt
    samples: NonNegativeInt

    @property
    def size(self) -> CropSize:
        """Size of the samples' HR images."""
        return CropSize(self.height, self.width)


class LatentsRecord(Record):
    """What the latents of the samples are: raw moments of an autoencoder's posterior, neither shifted nor scaled."""

    dtype: LatentsDtype
    channels: PositiveInt
    downscale: PositiveInt
    """Pixels a side of one latent pixel: the latents of a bucket are ``[channels, height / downscale, ...]``."""
    vae_sha256: Sha256
    """SHA-256 of the autoencoder's weights."""


class TextsRecord(Record):
    """What the text store in the folder holds."""

    fingerprint: Sha256
    tokens: PositiveInt
    prompt: PositiveInt
    """Channels of the embeddings of tokens."""
    pooled: PositiveInt | None
    """Channels of the pooled embedding, where there is one."""


class LicenceRecord(Record):
    """Under which terms photographs are used."""

    photographs: str
    """Name of one, or ``all``."""
    licence: str
    """As its source states it; ``unknown`` where nobody said it."""
    credit: str | None = None
    source: str | None = None


class ShardManifest(Record):
    """A folder of shards. All shards of one bucket have consecutive numbers."""

    format_version: Literal[2]
    samples: PositiveInt
    """Samples in all shards."""
    crop_size: PositiveInt
    """``data.crop_size`` of the configuration that made the shards."""
    scale: Literal[2, 4, 8]
    degradation: Degradation
    buckets: Annotated[list[BucketRecord], Field(min_length=1)]
    fingerprint: Sha256
    """SHA-256 of ``made_from``."""
    made_from: dict[str, Any]
    """Everything that the shards' bytes depend on."""
    latents: LatentsRecord | None
    """None where the samples have none."""
    texts: TextsRecord | None
    """None where the folder has no text store."""
    licences: list[LicenceRecord]
    shards: list[ShardRecord]

    @property
    def config_buckets(self) -> list[list[int]]:
        """``data.buckets`` that describes these shards: empty where all samples are squares of ``crop_size``."""
        sizes = [[bucket.height, bucket.width] for bucket in self.buckets]
        return [] if sizes == [[self.crop_size, self.crop_size]] else sizes

    @model_validator(mode="after")
    def _numbers_agree(self) -> ShardManifest:
        check_fingerprint(self.fingerprint, self.made_from)
        unknown = [shard.file for shard in self.shards if shard.size not in {bucket.size for bucket in self.buckets}]
        if unknown:
            raise ValueError(f"{unknown[0]} is of no bucket")
        return self

    def check_complete(self) -> None:
        """Compares the counts of shards, buckets and the whole.

        Raises:
            ValueError: They differ.
        """
        for bucket in self.buckets:
            held = sum(shard.samples for shard in self.shards if shard.size == bucket.size)
            if held != bucket.samples:
                raise ValueError(f"bucket {list(bucket.size)} has {bucket.samples} samples, its shards {held}")
        held = sum(shard.samples for shard in self.shards)
        if held != self.samples:
            raise ValueError(f"there are {self.samples} samples, {held} of them in shards")


class _WrittenManifest(ShardManifest):
    sha256: Sha256

    @model_validator(mode="after")
    def _is_what_was_written(self) -> _WrittenManifest:
        if fingerprint_of(_content(self)) != self.sha256:
            raise ValueError("the content is not what was written: its SHA-256 is not the one in it")
        return self


def manifest_text(manifest: ShardManifest) -> str:
    """A manifest as its file's text, with the hash that tells whether anything in it was changed."""
    content = _content(manifest)
    return json.dumps(content | {"sha256": fingerprint_of(content)}, indent=2) + "\n"


def _content(manifest: ShardManifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json", exclude={"sha256"})


def is_shard_folder(folder: Path) -> bool:
    """Whether a folder holds shards, finished or not: a manifest, or tar files that are named like shards."""
    if (folder / MANIFEST_FILE).is_file() or (folder / UNFINISHED_FILE).is_file():
        return True
    return folder.is_dir() and next(folder.glob("[0-9]" * 6 + ".tar"), None) is not None


def read_manifest(folder: Path) -> ShardManifest:
    """Reads the manifest of a finished folder.

    Raises:
        UserError: It is missing, damaged, of another version of the format, or its numbers contradict each other.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        state = "its shards are not finished" if (folder / UNFINISHED_FILE).is_file() else "it cannot be read as shards"
        raise UserError(f"{folder} has no {MANIFEST_FILE}: {state}; run the same 'framer prepare' command again")
    manifest = parse_manifest(path)
    try:
        manifest.check_complete()
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; run the same 'framer prepare' command again") from None
    return manifest


def parse_manifest(path: Path) -> ShardManifest:
    """Reads a manifest, finished or not.

    Raises:
        UserError: It cannot be read or is damaged.
    """
    try:
        return _WrittenManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValidationError as error:
        problems = error.errors(include_url=False)
        version = next((problem["input"] for problem in problems if problem["loc"] == ("format_version",)), None)
        if type(version) is int:
            raise UserError(
                f"{path} is of format {version}, but this version of framer reads format {FORMAT_VERSION}; make the "
                "shards anew in another folder with 'framer prepare'"
            ) from None
        raise damaged(path, error) from None
