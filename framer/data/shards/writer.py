"""Writing pairs into shards."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from framer.data.manifests import fingerprint_of
from framer.data.outputs import sole_writer
from framer.data.samples import Sample
from framer.data.shards.index import LATENTS, index_bytes, index_tar, members_of, sample_key
from framer.data.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    UNFINISHED_FILE,
    BucketRecord,
    ShardManifest,
    ShardRecord,
    is_shard_folder,
    manifest_text,
    parse_manifest,
)
from framer.data.shards.pairs import EncodedPair, PairSource, sample_of_files
from framer.data.shards.photographs import PHOTOGRAPHS_FILE
from framer.data.shards.verify import is_intact
from framer.data.workers import leave_signals_to_parent, loaded
from framer.errors import UserError
from framer.extras import require
from framer.files import file_sha256, remove_partials, replacing, sync_folder, write_bytes, write_text

if TYPE_CHECKING:
    from framer.data.shards.latents import LatentEncoder

logger = logging.getLogger(__name__)

# Other versions of these can give other bytes for the same pixels.
_LIBRARIES: Final = ("PIL", "webdataset")
# Keys of made_from that come from the command line; all others are of the configuration or of the machine.
_OPTIONS: Final = {
    "samples": "--samples",
    "shard_size": "--shard-size",
    "vae": "--vae",
    "latents_dtype": "--latents-dtype",
    "device": "--device",
    "captions": "--captions",
    "captions from": "--captions",
    "texts": "--text-encoder",
}


class _Made(NamedTuple):
    pair: EncodedPair
    images: Sample | None
    """What training reads from the pair's files, where latents are made of it."""


class _MadePairs(Dataset[_Made]):
    def __init__(self, source: PairSource, *, with_images: bool) -> None:
        self._source = source
        self._with_images = with_images
        self._ends = list(accumulate(source.rows))

    def __getitem__(self, row: int) -> _Made:
        pair = self._source.encoded(row)
        if not self._with_images:
            return _Made(pair, None)
        size = self._source.buckets[bisect_right(self._ends, row)]
        return _Made(pair, sample_of_files(pair.files, size, scale=self._source.scale, index=pair.number))


def write_shards(
    source: PairSource,
    folder: Path,
    *,
    crop_size: int,
    shard_size: int,
    workers: int,
    encoder: LatentEncoder | None = None,
) -> ShardManifest:
    """Writes all pairs of a source into a folder of shards.

    The bytes depend on the arguments but for ``workers``. Each shard holds samples of one bucket. A shard appears under
    its name when it is complete and on disk, and the manifest after all shards; a call that was interrupted is finished
    by another one with the same arguments, which keeps the shards whose hashes are right.

    Args:
        source: The pairs.
        folder: Where the shards go; made if needed.
        crop_size: ``data.crop_size`` of the configuration.
        shard_size: A shard is finished once its images and texts have this size, in bytes.
        workers: Processes that make pairs; 0 makes them in this one.
        encoder: Makes the latents of each pair, in this process; None writes those of the source, if it has any.

    Returns:
        The manifest.

    Raises:
        UserError: The folder holds something else, or shards of other settings or photographs; or another process
            writes into it; or the disk is full; or what a pair is made of can no longer be read.
        ValueError: A number is out of range, or there are latents of both the source and an encoder.
    """
    if source.latents is not None and encoder is not None:
        raise ValueError("the source has latents of its own; give no encoder")
    if len(source) < 1 or shard_size < 1:
        raise ValueError(f"pairs and shard_size must be at least 1, got {len(source)} and {shard_size}")
    if encoder is not None:
        for size in source.buckets:
            encoder.check_size(size)
    made_from = _made_from(source, encoder, shard_size=shard_size, crop_size=crop_size)
    manifest = ShardManifest.model_validate(
        {
            "format_version": FORMAT_VERSION,
            "samples": len(source),
            "crop_size": crop_size,
            "scale": source.scale,
            "degradation": source.degradation,
            "buckets": [
                BucketRecord(height=size.height, width=size.width, samples=count)
                for size, count in zip(source.buckets, source.rows, strict=True)
            ],
            "fingerprint": fingerprint_of(made_from),
            "made_from": made_from,
            "latents": source.latents if encoder is None else encoder.record,
            "texts": source.texts,
            "licences": source.licences,
            "shards": [],
        }
    )
    with sole_writer(folder):
        earlier = _earlier_shards(folder, made_from)
        remove_partials(folder)
        write_text(folder / UNFINISHED_FILE, manifest_text(manifest.model_copy(update={"shards": earlier})))
        shards = _write_all(source, folder, manifest, earlier, encoder=encoder, shard_size=shard_size, workers=workers)
        manifest = manifest.model_copy(update={"shards": shards})
        manifest.check_complete()
        if source.photographs is not None:
            write_bytes(folder / PHOTOGRAPHS_FILE, source.photographs)
        write_text(folder / MANIFEST_FILE, manifest_text(manifest))
        (folder / UNFINISHED_FILE).unlink()
        sync_folder(folder)
    return manifest


def _write_all(
    source: PairSource,
    folder: Path,
    manifest: ShardManifest,
    earlier: list[ShardRecord],
    *,
    encoder: LatentEncoder | None,
    shard_size: int,
    workers: int,
) -> list[ShardRecord]:
    members = members_of(latents=manifest.latents is not None)
    ends = list(accumulate(source.rows))
    progress = require("tqdm", extra="train").tqdm(total=len(source), desc="prepare", unit="sample")
    shards: list[ShardRecord] = []
    row = 0
    pairs: Iterator[EncodedPair] | None = None
    try:
        while row < len(source):
            number = len(shards)
            record = earlier[number] if number < len(earlier) else None
            if record is not None and is_intact(folder, record):
                pairs = None  # the next shard that is written begins at another row
                progress.update(record.samples)
                progress.initial += record.samples  # so that the rate is that of the samples made now
            else:
                if record is not None:
                    logger.warning("%s is missing or damaged and is written again", folder / record.file)
                if pairs is None:
                    pairs = _encoded(source, encoder, row, workers)
                bucket = next(bucket for bucket, end in enumerate(ends) if end > row)
                size, most = source.buckets[bucket], ends[bucket] - row
                path = folder / f"{number:06d}.tar"
                count = _write_shard(path, pairs, members, most=most, shard_size=shard_size, progress=progress)
                record = _record(path, count, size.height, size.width)
                known = [*shards, record, *earlier[number + 1 :]]
                write_text(folder / UNFINISHED_FILE, manifest_text(manifest.model_copy(update={"shards": known})))
            shards.append(record)
            row += record.samples
    finally:
        progress.close()
    return shards


def _encoded(source: PairSource, encoder: LatentEncoder | None, row: int, workers: int) -> Iterator[EncodedPair]:
    loader: DataLoader[_Made] = DataLoader(
        _MadePairs(source, with_images=encoder is not None),
        batch_size=None,
        sampler=range(row, len(source)),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),
    )
    for pair, images in loaded(loader):
        if encoder is None or images is None:
            yield pair
        else:
            latents = encoder.encode(images["hr"], images["lr_upsampled"], f"sample {sample_key(pair.number)}")
            yield pair._replace(files=pair.files | {LATENTS: latents})


def _as_it_is(made: Any) -> Any:
    return made


def _write_shard(
    path: Path, pairs: Iterator[EncodedPair], members: Sequence[str], *, most: int, shard_size: int, progress: Any
) -> int:
    """Writes a tar file aside, and its index, then renames it; returns the number of samples."""
    webdataset = require("webdataset", extra="train")
    count = size = 0
    try:
        with replacing(path) as file:
            # Without times and users of this machine, so that the same samples give the same bytes.
            with webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
                while count < most and size < shard_size:
                    pair = next(pairs)
                    size += tar.write({"__key__": sample_key(pair.number), **pair.files})
                    count += 1
                    progress.update()
            file.flush()
            write_bytes(_index_path(path), index_bytes(index_tar(Path(file.name), members)))
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; run the command again when that is mended: the shards "
            "before it are kept"
        ) from error
    return count


def _index_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.index.npy")


def _record(path: Path, samples: int, height: int, width: int) -> ShardRecord:
    index = _index_path(path)
    return ShardRecord(
        file=path.name,
        height=height,
        width=width,
        samples=samples,
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        index_bytes=index.stat().st_size,
        index_sha256=file_sha256(index),
    )


def check_output(folder: Path) -> ShardManifest | None:
    """The manifest of the shards that an earlier call left in a folder, finished or not; None if there are none.

    Raises:
        UserError: The folder holds shards that have no manifest, or its manifest is damaged.
    """
    for name in (MANIFEST_FILE, UNFINISHED_FILE):
        if (folder / name).is_file():
            return parse_manifest(folder / name)
    if is_shard_folder(folder):
        raise UserError(
            f"--output {folder} holds numbered tar files that this command did not write; give another folder"
        )
    return None


def check_earlier(
    source: PairSource,
    folder: Path,
    *,
    crop_size: int,
    shard_size: int,
    encoder: LatentEncoder | None,
    unknown: Collection[str],
    embedded: bool,
) -> None:
    """Refuses a folder as `write_shards` would, as far as can be told before there are texts.

    Args:
        source: The pairs without what is not known yet.
        folder: See `write_shards`, as the other arguments.
        crop_size: Likewise.
        shard_size: Likewise.
        encoder: Likewise.
        unknown: Keys of `PairSource.made_from` that are not known yet.
        embedded: Whether there will be a text store.

    Raises:
        UserError: The folder holds something else, or shards of other settings or photographs.
    """
    made_from = _made_from(source, encoder, shard_size=shard_size, crop_size=crop_size)
    _earlier_shards(folder, made_from, unknown)
    earlier = check_output(folder)
    if earlier is not None and (earlier.texts is not None) != embedded:
        raise UserError(
            f"--output {folder} holds shards that were made {'without' if embedded else 'with'} embedded texts; give "
            "another folder, or remove this one"
        )


def _earlier_shards(folder: Path, now: dict[str, Any], unknown: Collection[str] = ()) -> list[ShardRecord]:
    """The shards that an earlier call with the same arguments left."""
    earlier = check_output(folder)
    if earlier is None:
        return []
    before = earlier.made_from
    changed = [
        f"{_OPTIONS.get(key, key)} {before.get(key)} (now {now.get(key)})"
        for key in sorted(before.keys() | now.keys())
        if key not in unknown and before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"--output {folder} holds shards that were made from something else: {', '.join(changed)}; give another "
            "folder, or remove this one"
        )
    return earlier.shards


def _made_from(source: PairSource, encoder: LatentEncoder | None, *, shard_size: int, crop_size: int) -> dict[str, Any]:
    own = {"samples": len(source), "shard_size": shard_size, "data.crop_size": crop_size}
    libraries = {name: str(require(name, extra="train").__version__) for name in _LIBRARIES}
    return source.made_from | own | libraries | ({} if encoder is None else encoder.made_from)
