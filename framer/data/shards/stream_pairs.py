"""The first samples of a stream of photographs, as pairs for shards."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from framer.data.buckets import BucketOrder
from framer.data.dataset import RealISRDataset
from framer.data.levels import tensor_to_bytes
from framer.data.shards.manifest import LatentsRecord, LicenceRecord, TextsRecord
from framer.data.shards.pairs import EncodedPair, encoded_pair, png_bytes
from framer.data.shards.photographs import MADE_FROM_KEY, made_from_photographs, photograph_list
from framer.data.texts.keys import photograph_key
from framer.extras import require

if TYPE_CHECKING:
    from framer.data.texts.store import TextStore

# Other versions of these can give other pixels.
_LIBRARIES: Final = ("numpy", "cv2", "scipy")


class PhotographTexts(NamedTuple):
    """Texts of photographs."""

    captions: Mapping[str, str]
    """By the photograph's key, see ``framer.data.texts.keys``."""
    store: TextStore | None
    """Their embeddings; None where they were not embedded."""
    root: Path | None
    """What keys are relative to."""
    kind: str = "given"
    """What gave the captions, see ``framer.data.texts.prepare.captions_kind``."""


class StreamPairs:
    """The first ``samples`` samples of a stream of photographs.

    A :class:`~framer.data.shards.pairs.PairSource`.

    Args:
        dataset: The photographs.
        samples: How many samples of the stream.
        texts: Texts of all photographs; None where there are none.
        licences: Under which terms the photographs are used.

    Raises:
        UserError: A photograph can no longer be read.
        ValueError: `samples` is not positive.
    """

    def __init__(
        self,
        dataset: RealISRDataset,
        *,
        samples: int,
        texts: PhotographTexts | None = None,
        licences: Sequence[LicenceRecord] = (),
    ) -> None:
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self._dataset = dataset
        self._places = _places(dataset, samples)
        self.scale = dataset.scale
        self.degradation = dataset.degradation.name
        self.buckets = dataset.buckets
        self.rows = [int(count) for count in np.bincount(self._places[:, 0], minlength=len(self.buckets))]
        self.latents: LatentsRecord | None = None
        self._texts: PhotographTexts | None = None
        self.texts: TextsRecord | None = None
        self.licences = list(licences)
        self.photographs: bytes | None = photograph_list(dataset.paths)
        photographs = made_from_photographs(self.photographs, len(dataset.paths))
        self.made_from = {MADE_FROM_KEY: photographs} | _made_from(dataset)
        if texts is not None:
            self._take(texts)

    def with_texts(self, texts: PhotographTexts) -> StreamPairs:
        """The same pairs with texts."""
        pairs = copy.copy(self)
        pairs._take(texts)
        return pairs

    def _take(self, texts: PhotographTexts) -> None:
        self._texts = texts
        self.texts = None if texts.store is None else _texts_record(texts.store)
        self.made_from = self.made_from | _texts_made_from(texts)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._places)

    def encoded(self, row: int) -> EncodedPair:
        """Makes the pair at ``row``.

        Raises:
            UserError: The photograph can no longer be read.
        """
        bucket, place, number = (int(value) for value in self._places[row])
        sample = self._dataset.sample(bucket, place, number)
        caption, text = self._text_of(self._dataset.photograph_at(bucket, place))
        hr, lr = (png_bytes(tensor_to_bytes(sample[name])) for name in ("hr", "lr"))
        return encoded_pair(number, hr=hr, lr=lr, name=sample["name"], caption=caption, text=text)

    def _text_of(self, photograph: Path) -> tuple[str | None, int | None]:
        """A photograph's text and the row of its embeddings."""
        if self._texts is None:
            return None, None
        key = photograph_key(photograph, self._texts.root)
        store = self._texts.store
        return self._texts.captions[key], None if store is None else store.row_of(key)


def _places(dataset: RealISRDataset, samples: int) -> npt.NDArray[np.int64]:
    """``int64 [samples, 3]``, bucket after bucket: bucket, place in its stream, number in the whole stream."""
    order = BucketOrder(dataset.bucket_sizes, block=1, seed=dataset.seed)
    places: list[tuple[int, int, int]] = []
    for bucket, size in enumerate(dataset.bucket_sizes):
        place = 0
        while size and (number := order.block_of(bucket, place)) < samples:
            places.append((bucket, place, number))
            place += 1
    return np.array(places, dtype=np.int64).reshape(-1, 3)


def _made_from(dataset: RealISRDataset) -> dict[str, Any]:
    preset = json.dumps(asdict(dataset.degradation), sort_keys=True)
    made_from = {
        "seed": dataset.seed,
        "data.buckets": [list(bucket) for bucket in dataset.buckets],
        "data.scale": dataset.scale,
        "data.degradation": f"{dataset.degradation.name}, SHA-256 {hashlib.sha256(preset.encode()).hexdigest()}",
        "data.horizontal_flip": dataset.horizontal_flip,
        "data.quarter_turns": dataset.quarter_turns,
        "data.rescale": list(dataset.rescale),
        "data.colour_jitter": dataset.colour_jitter,
        "data.on_broken": dataset.on_broken,
        "margin": dataset.margin,
    }
    return made_from | {name: str(require(name, extra="train").__version__) for name in _LIBRARIES}


def _texts_record(store: TextStore) -> TextsRecord:
    return TextsRecord(
        fingerprint=store.fingerprint, tokens=store.tokens, prompt=store.sizes.prompt, pooled=store.sizes.pooled
    )


def _texts_made_from(texts: PhotographTexts) -> dict[str, Any]:
    captions = json.dumps(dict(texts.captions), sort_keys=True)
    return {
        "captions": f"SHA-256 {hashlib.sha256(captions.encode()).hexdigest()}",
        "captions from": texts.kind,
        "texts": None if texts.store is None else f"fingerprint {texts.store.fingerprint}",
    }
