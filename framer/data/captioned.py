"""Samples of photographs together with the embeddings of each photograph's text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from framer.data.buckets import BucketOrder, CropSize
from framer.data.dataset import RealISRDataset
from framer.data.samples import Sample
from framer.errors import UserError
from framer.listing import some_of
from framer.seeding import derived_seed

if TYPE_CHECKING:
    from framer.data.texts.store import TextStore


class CaptionedPhotographs(Dataset[Sample]):
    """The samples of photographs, with the embeddings of their photographs' texts.

    Images are those that the photographs alone would give. A sample's text is dropped by draws from the seed and its
    number alone.

    Args:
        photographs: The samples.
        store: The texts.
        root: The folder that was searched for photographs, see ``photograph_key``; None for the bundled ones.
        null_text_probability: How often a sample has the empty text in the place of its own, in [0, 1].

    Raises:
        UserError: Photographs have no text, which names the first few, or two of them cannot be told apart.
    """

    def __init__(
        self, photographs: RealISRDataset, store: TextStore, *, root: Path | None, null_text_probability: float = 0.0
    ) -> None:
        from framer.data.texts.keys import photographs_by_key

        keyed = photographs_by_key(photographs.paths, root)
        missing = [key for key in keyed if key not in store.keys]
        if missing:
            raise UserError(
                f"data.texts: {len(missing)} of {len(keyed)} photographs have no text in {store.folder}: "
                f"{some_of(missing)}; add theirs, or leave these photographs out"
            )
        self.buckets: list[CropSize] = photographs.buckets
        self.bucket_sizes: list[int] = photographs.bucket_sizes
        self.null_text_probability = null_text_probability
        self._photographs = photographs
        self._store = store
        self._rows = {path: store.row_of(key) for key, path in keyed.items()}
        self._order = BucketOrder(self.bucket_sizes, block=1, seed=photographs.seed)

    def __len__(self) -> int:
        """Number of photographs, which is the length of an epoch; indices beyond it are valid."""
        return len(self._photographs)

    def __getitem__(self, index: int) -> Sample:
        """Makes sample ``index``, any integer from 0 on."""
        return self.sample(*self._order.locate(index), index)

    def sample(self, bucket: int, place: int, index: int) -> Sample:
        """Makes a sample of one bucket.

        Args:
            bucket: The bucket's number.
            place: Place in the bucket's own stream, which chooses the photograph.
            index: The sample's number in the whole stream, which everything else is drawn from.

        Raises:
            UserError: The photograph or its text can no longer be read.
        """
        from framer.data.texts.store import NULL_ROW

        sample = self._photographs.sample(bucket, place, index)
        dropped = drops_text(self._photographs.seed, index, self.null_text_probability)
        row = NULL_ROW if dropped else self._rows[self._photographs.photograph_at(bucket, place)]
        text = self._store.embeddings(row)
        sample["prompt_embeds"] = text.prompt
        if text.pooled is not None:
            sample["pooled_prompt_embeds"] = text.pooled
        return sample


def drops_text(seed: int, index: int, probability: float) -> bool:
    """Whether a sample has the empty text in the place of its own.

    Args:
        seed: The run's.
        index: The sample's number in the training stream.
        probability: In [0, 1].
    """
    return bool(np.random.default_rng(derived_seed(seed, "null text", index)).random() < probability)
