"""The samples of a checked folder, as pairs for shards."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framer.data.buckets import CropSize
from framer.data.images import read_image
from framer.data.layouts.base import GT, LR
from framer.data.layouts.check import CheckedFolder
from framer.data.layouts.kept_latents import KeptLatents
from framer.data.shards.manifest import LatentsRecord, LicenceRecord, TextsRecord
from framer.data.shards.pairs import EncodedPair, encoded_pair, png_bytes
from framer.data.texts.store import TextStore
from framer.errors import UserError


class LayoutPairs:
    """The pairs of a folder in the order of their names, bucket after bucket; a bucket is a size of HR images.

    A :class:`~framer.data.shards.pairs.PairSource`.

    Args:
        checked: The folder.
        degradation: Name of the preset that the LR images are taken to be made with.
        captions: By name, the samples' texts.
        captions_from: What gave them: ``--from`` for the folder, or see ``framer.data.texts.prepare.captions_kind``.
        store: Holds their embeddings under their names; None for none.
        latents: How the folder's latents are carried over; None to leave them.
        licences: Under which terms the photographs are used.

    Raises:
        UserError: Images have different sizes of one aspect ratio, which training could not tell apart.
    """

    def __init__(
        self,
        checked: CheckedFolder,
        *,
        degradation: str,
        captions: Mapping[str, str],
        captions_from: str = "--from",
        store: TextStore | None = None,
        latents: KeptLatents | None = None,
        licences: Sequence[LicenceRecord] = (),
    ) -> None:
        self._captions = captions
        self._captions_from = captions_from
        self._keep = latents
        self._rows_of_text = None if store is None else {r.name: store.row_of(r.name) for r in checked.records}
        members: dict[CropSize, list[int]] = {}
        for number, record in enumerate(checked.records):
            assert record.size is not None
            members.setdefault(record.size, []).append(number)
        self.buckets = sorted(members)
        _check_aspect_ratios(self.buckets, checked)
        self.rows = [len(members[size]) for size in self.buckets]
        self._places = [(size, number) for size in self.buckets for number in members[size]]
        self._records = checked.folder.records
        self.scale = checked.scale
        self.degradation = degradation
        self.latents: LatentsRecord | None = None if latents is None else latents.record
        self.texts: TextsRecord | None = None
        if store is not None:
            self.texts = TextsRecord(
                fingerprint=store.fingerprint,
                tokens=store.tokens,
                prompt=store.sizes.prompt,
                pooled=store.sizes.pooled,
            )
        self.licences = list(licences)
        self.photographs: bytes | None = None
        self.made_from = self._made_from(checked)

    @property
    def crop_size(self) -> int:
        """The shortest side of all images, for the tile of inference."""
        return min(min(size) for size in self.buckets)

    def _made_from(self, checked: CheckedFolder) -> dict[str, Any]:
        digest = hashlib.sha256()
        for record in checked.records:
            digest.update(f"{record.name}\0{record.sha256}\0{self._captions.get(record.name)!r}\n".encode())
        return {
            "--layout": checked.folder.layout.name,
            "--from": f"{len(self)} samples, SHA-256 {digest.hexdigest()}",
            "--degradation": self.degradation,
            "data.scale": self.scale,
            "captions from": self._captions_from,
            "texts of --from": None if self.texts is None else self.texts.fingerprint,
            "--keep-latents": None if self._keep is None else self._keep.identity,
        }

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._places)

    def encoded(self, row: int) -> EncodedPair:
        """Reads the pair at ``row``.

        Raises:
            UserError: A file can no longer be read, or has changed its size since it was checked.
        """
        size, number = self._places[row]
        record = self._records[number]
        lr_size = CropSize(size.height // self.scale, size.width // self.scale)
        pair = encoded_pair(
            number,
            hr=png_bytes(_read(record.paths[GT], size)),
            lr=png_bytes(_read(record.paths[LR], lr_size)),
            name=record.name,
            caption=self._captions.get(record.name),
            text=None if self._rows_of_text is None else self._rows_of_text[record.name],
        )
        if self._keep is not None:
            pair.files.update(self._keep.files(record, size))
        return pair


def _read(path: Path, size: CropSize) -> npt.NDArray[np.uint8]:
    image = read_image(path)
    if image.shape[:2] != size:
        raise UserError(
            f"{path} has {image.shape[1]}x{image.shape[0]} pixels instead of the {size.width}x{size.height} that it "
            "had when it was checked; run the command again when nothing changes the folder"
        )
    return image


def _check_aspect_ratios(sizes: Sequence[CropSize], checked: CheckedFolder) -> None:
    by_ratio: dict[tuple[int, int], CropSize] = {}
    for size in sizes:
        divisor = math.gcd(size.height, size.width)
        other = by_ratio.setdefault((size.height // divisor, size.width // divisor), size)
        if other != size:
            named = [next(record.name for record in checked.records if record.size == each) for each in (other, size)]
            raise UserError(
                f"{checked.folder.root / GT}: {named[0]} has {other.width}x{other.height} pixels and {named[1]} "
                f"{size.width}x{size.height}: sizes of one aspect ratio cannot be in one folder of shards; split the "
                "folder by size"
            )
