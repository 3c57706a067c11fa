"""Writing the first samples of a stream of photographs into shards."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from framer.data.buckets import BucketOrder
from framer.data.dataset import RealISRDataset
from framer.data.shards.index import HR, LR, META, index_bytes, index_tar, sample_key
from framer.data.shards.manifest import (
    MANIFEST_FILE,
    UNFINISHED_FILE,
    BucketRecord,
    ShardManifest,
    ShardRecord,
    fingerprint,
    is_shard_folder,
    parse_manifest,
)
from framer.data.shards.verify import file_sha256, is_intact
from framer.data.workers import leave_signals_to_parent, loaded
from framer.errors import UserError
from framer.extras import require
from framer.files import sync_folder, write_bytes, write_text

logger = logging.getLogger(__name__)

FORMAT_VERSION: Final = 1
# Other versions of these can give other pixels, or other bytes for the same pixels.
_LIBRARIES: Final = ("numpy", "cv2", "PIL", "scipy", "webdataset")
# Keys of made_from that come from the command line; all others are of the configuration or of the machine.
_OPTIONS: Final = {"samples": "--samples", "shard_size": "--shard-size"}


class _EncodedPair(NamedTuple):
    number: int
    files: dict[str, bytes]


class _Plan(NamedTuple):
    """Which samples are written, in which order: bucket after bucket, each in the order of the stream."""

    rows: npt.NDArray[np.int64]
    """``int64 [samples, 3]``: bucket, place in the bucket's stream, number in the whole stream."""
    ends: list[int]
    """Row after the last one of each bucket."""


class _EncodedPairs(Dataset[_EncodedPair]):
    def __init__(self, dataset: RealISRDataset, plan: _Plan) -> None:
        self._dataset = dataset
        self._rows = plan.rows

    def __getitem__(self, row: int) -> _EncodedPair:
        bucket, place, number = (int(value) for value in self._rows[row])
        sample = self._dataset.sample(bucket, place, number)
        meta = json.dumps({"index": number, "name": sample["name"]}, ensure_ascii=False)
        return _EncodedPair(number, {HR: _png(sample["hr"]), LR: _png(sample["lr"]), META: meta.encode()})


def write_shards(
    dataset: RealISRDataset, folder: Path, *, crop_size: int, samples: int, shard_size: int, workers: int
) -> ShardManifest:
    """Writes the first ``samples`` samples of a stream into a folder of shards.

    The bytes depend on the arguments but for ``workers``, and on the photographs. Each shard holds samples of one
    bucket. A shard appears under its name when it is complete and on disk, and the manifest after all shards; a call
    that was interrupted is finished by another one with the same arguments, which keeps the shards whose hashes are
    right.

    Args:
        dataset: The photographs.
        folder: Where the shards go; made if needed.
        crop_size: ``data.crop_size`` of the configuration.
        samples: How many samples to write.
        shard_size: A shard is finished once its images and texts have this size, in bytes.
        workers: Processes that make samples; 0 makes them in this one.

    Returns:
        The manifest.

    Raises:
        UserError: The folder holds something else, or shards of other settings or photographs; or the disk is full; or
            a photograph can no longer be read.
        ValueError: A number is out of range.
    """
    if samples < 1 or shard_size < 1:
        raise ValueError(f"samples and shard_size must be at least 1, got {samples} and {shard_size}")
    made_from = _made_from(dataset, samples=samples, shard_size=shard_size, crop_size=crop_size)
    plan = _plan(dataset, samples)
    counts = np.diff([0, *plan.ends])
    manifest = ShardManifest.model_validate(
        {
            "format_version": FORMAT_VERSION,
            "samples": samples,
            "crop_size": crop_size,
            "scale": dataset.scale,
            "degradation": dataset.degradation.name,
            "buckets": [
                BucketRecord(height=size.height, width=size.width, samples=int(count))
                for size, count in zip(dataset.buckets, counts, strict=True)
            ],
            "fingerprint": fingerprint(made_from),
            "made_from": made_from,
            "shards": [],
        }
    )
    earlier = _earlier_shards(folder, manifest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    write_text(folder / UNFINISHED_FILE, _as_json(manifest.model_copy(update={"shards": earlier})))
    shards = _write_all(dataset, folder, manifest, plan, earlier, shard_size=shard_size, workers=workers)
    manifest = manifest.model_copy(update={"shards": shards})
    manifest.check_complete()
    write_text(folder / MANIFEST_FILE, _as_json(manifest))
    (folder / UNFINISHED_FILE).unlink()
    sync_folder(folder)
    return manifest


def _write_all(
    dataset: RealISRDataset,
    folder: Path,
    manifest: ShardManifest,
    plan: _Plan,
    earlier: list[ShardRecord],
    *,
    shard_size: int,
    workers: int,
) -> list[ShardRecord]:
    progress = require("tqdm", extra="train").tqdm(total=len(plan.rows), desc="shard", unit="sample")
    shards: list[ShardRecord] = []
    row = 0
    pairs: Iterator[_EncodedPair] | None = None
    try:
        while row < len(plan.rows):
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
                    pairs = _encoded(dataset, plan, row, workers)
                end = next(end for end in plan.ends if end > row)
                size = dataset.buckets[int(plan.rows[row][0])]
                path = folder / f"{number:06d}.tar"
                count = _write_shard(path, pairs, most=end - row, shard_size=shard_size, progress=progress)
                record = _record(path, count, size.height, size.width)
                known = [*shards, record, *earlier[number + 1 :]]
                write_text(folder / UNFINISHED_FILE, _as_json(manifest.model_copy(update={"shards": known})))
            shards.append(record)
            row += record.samples
    finally:
        progress.close()
    return shards


def _encoded(dataset: RealISRDataset, plan: _Plan, row: int, workers: int) -> Iterator[_EncodedPair]:
    loader: DataLoader[_EncodedPair] = DataLoader(
        _EncodedPairs(dataset, plan),
        batch_size=None,
        sampler=range(row, len(plan.rows)),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),
    )
    return loaded(loader)


def _as_it_is(pair: Any) -> Any:
    return pair


def _write_shard(path: Path, pairs: Iterator[_EncodedPair], *, most: int, shard_size: int, progress: Any) -> int:
    """Writes a tar file aside, and its index, then renames it; returns the number of samples."""
    webdataset = require("webdataset", extra="train")
    partial = path.with_name(f".{path.name}.partial")
    count = size = 0
    try:
        with partial.open("wb") as file:
            # Without times and users of this machine, so that the same samples give the same bytes.
            with webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
                while count < most and size < shard_size:
                    pair = next(pairs)
                    size += tar.write({"__key__": sample_key(pair.number), **pair.files})
                    count += 1
                    progress.update()
            file.flush()
            os.fsync(file.fileno())
        offsets = index_tar(partial)
        write_bytes(_index_path(path), index_bytes(offsets))
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; run the command again when that is mended: the shards "
            "before it are kept"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
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


def _plan(dataset: RealISRDataset, samples: int) -> _Plan:
    order = BucketOrder(dataset.bucket_sizes, block=1, seed=dataset.seed)
    rows: list[tuple[int, int, int]] = []
    ends: list[int] = []
    for bucket, size in enumerate(dataset.bucket_sizes):
        place = 0
        while size and (number := order.block_of(bucket, place)) < samples:
            rows.append((bucket, place, number))
            place += 1
        ends.append(len(rows))
    return _Plan(np.array(rows, dtype=np.int64).reshape(-1, 3), ends)


def _earlier_shards(folder: Path, manifest: ShardManifest) -> list[ShardRecord]:
    """The shards that an earlier call with the same arguments left."""
    for name in (MANIFEST_FILE, UNFINISHED_FILE):
        if (folder / name).is_file():
            earlier = parse_manifest(folder / name)
            break
    else:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output {folder} is a file; give a folder")
        if is_shard_folder(folder):
            raise UserError(
                f"--output {folder} holds numbered tar files that this command did not write; give another folder"
            )
        return []
    before, now = earlier.made_from, manifest.made_from
    changed = [
        f"{_OPTIONS.get(key, key)} {before.get(key)} (now {now.get(key)})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"--output {folder} holds shards that were made from something else: {', '.join(changed)}; give another "
            "folder, or remove this one"
        )
    return earlier.shards


def _made_from(dataset: RealISRDataset, *, samples: int, shard_size: int, crop_size: int) -> dict[str, Any]:
    preset = json.dumps(asdict(dataset.degradation), sort_keys=True)
    made_from = {
        "samples": samples,
        "shard_size": shard_size,
        "seed": dataset.seed,
        "photographs": f"{len(dataset.paths)} files, SHA-256 {_digest_of_photographs(dataset.paths)}",
        "data.crop_size": crop_size,
        "data.buckets": [list(bucket) for bucket in dataset.buckets],
        "data.scale": dataset.scale,
        "data.degradation": f"{dataset.degradation.name}, SHA-256 {hashlib.sha256(preset.encode()).hexdigest()}",
        "data.horizontal_flip": dataset.horizontal_flip,
        "data.quarter_turns": dataset.quarter_turns,
        "data.rescale": list(dataset.rescale),
        "data.colour_jitter": dataset.colour_jitter,
        "margin": dataset.margin,
    }
    return made_from | {name: str(require(name, extra="train").__version__) for name in _LIBRARIES}


def _digest_of_photographs(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _png(image: Tensor) -> bytes:
    """An image ``float32 [3, H, W]`` in ``[-1, 1]`` as a PNG file of 8 bits."""
    pixels = ((image + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    require("PIL.Image", extra="train").fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _as_json(manifest: ShardManifest) -> str:
    return json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n"
