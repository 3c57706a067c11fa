"""Reading pairs from shards in any order."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from framer.data.buckets import BucketOrder, CropSize
from framer.data.samples import Sample, draw_quarter_turns
from framer.data.shards.index import LATENTS, META, Offsets, members_of, open_index, sample_key, spans_of
from framer.data.shards.latents import read_latents
from framer.data.shards.manifest import MANIFEST_FILE, TEXTS_FOLDER, ShardManifest, ShardRecord, TextsRecord
from framer.data.shards.order import ShardOrder
from framer.data.shards.pairs import read_meta, sample_of_files
from framer.errors import UserError
from framer.models.text import TextEmbeddings
from framer.seeding import derived_seed

if TYPE_CHECKING:
    from framer.data.texts.store import TextStore

OPEN_SHARDS: Final = 16
"""Shards that one process keeps open."""


class _OpenShard(NamedTuple):
    descriptor: int
    offsets: Offsets


class ShardDataset(Dataset[Sample]):
    """An endless stream of the pairs in a folder of shards.

    With the latents and texts that were prepared with them. Like :class:`~framer.data.dataset.RealISRDataset`: sample
    ``i`` depends on the seed and ``i`` alone. The order is that of :class:`~framer.data.shards.order.ShardOrder` within
    each bucket; what is drawn anew each time is the mirroring and the turns of a pair, which its stored LR image allows
    but stored latents do not.

    Args:
        folder: The folder.
        manifest: What it holds.
        seed: Seed of every draw.
        horizontal_flip: Whether a pair is mirrored with probability one half.
        quarter_turns: Whether a pair is turned by 0, 90, 180 or 270 degrees with equal probability; by 0 or 180 where
            its bucket is not square.

    Raises:
        UserError: A shard or its index is missing or has another size than the manifest says; or the texts are missing,
            damaged, or others than the manifest says.
        ValueError: Pairs with latents are to be mirrored or turned.
    """

    def __init__(
        self,
        folder: Path,
        manifest: ShardManifest,
        *,
        seed: int,
        horizontal_flip: bool = False,
        quarter_turns: bool = False,
    ) -> None:
        if manifest.latents is not None and (horizontal_flip or quarter_turns):
            raise ValueError("stored latents can be neither mirrored nor turned")
        check_sizes(folder, manifest.shards)
        self.folder = folder
        self.scale = manifest.scale
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self.quarter_turns = quarter_turns
        self._latents = manifest.latents
        self._texts = None if manifest.texts is None else open_shard_texts(folder, manifest.texts)
        self.buckets: list[CropSize] = [bucket.size for bucket in manifest.buckets]
        self._members = members_of(latents=manifest.latents is not None)
        self._shards = [[shard for shard in manifest.shards if shard.size == size] for size in self.buckets]
        self.bucket_sizes: list[int] = [sum(shard.samples for shard in shards) for shards in self._shards]
        self._orders = [
            ShardOrder([shard.samples for shard in shards], bucket=bucket, seed=seed)
            for bucket, shards in enumerate(self._shards)
        ]
        self._order = BucketOrder(self.bucket_sizes, block=1, seed=seed)
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()

    def __len__(self) -> int:
        """Number of samples in all shards; indices beyond it are valid."""
        return sum(self.bucket_sizes)

    def __getitem__(self, index: int) -> Sample:
        """Reads sample ``index``, any integer from 0 on."""
        return self.sample(*self._order.locate(index), index)

    def sample(self, bucket: int, place: int, index: int) -> Sample:
        """Reads the sample at one place of a bucket's stream.

        Args:
            bucket: The bucket's number.
            place: Place in the bucket's own stream, which chooses the pair.
            index: The sample's number in the whole stream, which mirroring and turns are drawn from.

        Raises:
            UserError: The shard cannot be read, or a file in it is damaged; names the shard and the sample's key.
        """
        shard_number, row = self._orders[bucket].locate(place)
        shard = self._shards[bucket][shard_number]
        key, files = self._files(shard, row)
        where = f"{self.folder / shard.file}: sample {key}"
        rng = np.random.default_rng(derived_seed(self.seed, "shard augmentation", index))
        flip = self.horizontal_flip and bool(rng.random() < 0.5)
        turns = draw_quarter_turns(rng, square=shard.height == shard.width) if self.quarter_turns else 0
        sample = sample_of_files(
            files, shard.size, scale=self.scale, index=index, flip=flip, quarter_turns=turns, where=where
        )
        if self._latents is not None:
            latents = read_latents(files[LATENTS], self._latents, shard.size, f"{where}: {LATENTS}")
            sample["hr_latents_mean"] = latents.hr_mean
            sample["hr_latents_logvar"] = latents.hr_logvar
            sample["lr_latents_mean"] = latents.lr_mean
        if self._texts is not None:
            text = self._text(self._texts, files[META], f"{where}: {META}")
            sample["prompt_embeds"] = text.prompt
            if text.pooled is not None:
                sample["pooled_prompt_embeds"] = text.pooled
        return sample

    def _text(self, texts: TextStore, meta: bytes, where: str) -> TextEmbeddings:
        row = read_meta(meta, where).text
        if row is None:
            raise UserError(f"{where} is damaged: text: there is no row, although the folder has texts")
        try:
            return texts.embeddings(row)
        except (IndexError, UserError) as error:
            raise UserError(f"{where}: text: {error}") from None

    def _files(self, shard: ShardRecord, row: int) -> tuple[str, dict[str, bytes]]:
        """The key and the files of a sample."""
        path = self.folder / shard.file
        opened = self._opened(shard)
        spans = spans_of(opened.offsets[row], self._members)
        key = sample_key(int(opened.offsets[row][0]))
        # A sample's files lie one after the other: a single read takes them all.
        start = min(span.offset for span in spans.values())
        length = max(span.offset + span.size for span in spans.values()) - start
        try:
            data = os.pread(opened.descriptor, length, start)
        except OSError as error:
            raise UserError(f"{path}: sample {key}: cannot be read: {error.strerror or error}") from None
        if len(data) < length:
            raise UserError(f"{path}: sample {key}: the shard ends {length - len(data)} bytes before the sample does")
        return key, {name: data[span.offset - start :][: span.size] for name, span in spans.items()}

    def _opened(self, shard: ShardRecord) -> _OpenShard:
        opened = self._open.pop(shard.file, None)
        if opened is None:
            offsets = open_index(self.folder / shard.index_file, samples=shard.samples, members=self._members)
            path = self.folder / shard.file
            try:
                opened = _OpenShard(os.open(path, os.O_RDONLY | os.O_CLOEXEC), offsets)
            except OSError as error:
                raise UserError(f"{path}: cannot be opened: {error.strerror or error}") from None
        self._open[shard.file] = opened
        while len(self._open) > OPEN_SHARDS:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest.descriptor)
        return opened

    def close(self) -> None:
        """Closes the shards that this process has open."""
        while self._open:
            os.close(self._open.popitem()[1].descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()

    # A forked worker shares its parent's open files, which is safe: reads at an offset move no common position.
    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": OrderedDict()}


def open_shard_texts(folder: Path, record: TextsRecord) -> TextStore:
    """Opens the texts of a folder of shards.

    Raises:
        UserError: They are missing, damaged, or others than those that the shards were made with.
    """
    from framer.data.texts.store import TextStore

    store = TextStore(folder / TEXTS_FOLDER)
    if store.fingerprint != record.fingerprint:
        raise UserError(
            f"{store.folder} holds other texts than those of {folder / MANIFEST_FILE}; copy the folder again, or make "
            "the shards anew in another one"
        )
    return store


def check_sizes(folder: Path, shards: Sequence[ShardRecord]) -> None:
    """Compares the sizes of all files with what their records say.

    Raises:
        UserError: Files are missing or have another size; names the first and says how many there are.
    """
    problems: list[str] = []
    for shard in shards:
        for name, expected in ((shard.file, shard.bytes), (shard.index_file, shard.index_bytes)):
            try:
                size = (folder / name).stat().st_size
            except OSError as error:
                problems.append(f"{folder / name}: {error.strerror or error}")
                continue
            if size != expected:
                problems.append(f"{folder / name}: {size} bytes instead of the {expected} of the manifest")
    if problems:
        more = f" (and {len(problems) - 1} files more)" if len(problems) > 1 else ""
        raise UserError(
            f"{problems[0]}{more}; copy the folder again, or run the same 'framer prepare' command again to make it "
            "anew"
        )
