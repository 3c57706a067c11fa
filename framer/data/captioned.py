"""Samples of photographs together with the embeddings of each photograph's text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

from framer.data.buckets import BucketOrder, CropSize
from framer.data.dataset import RealISRDataset
from framer.data.samples import Sample
from framer.errors import UserError
from framer.listing import some_of

if TYPE_CHECKING:
    from framer.data.texts.store import TextStore


class CaptionedPhotographs(Dataset[Sample]):
    """The samples of photographs, with the embeddings of their photographs' texts.

    Images are those that the photographs alone would give.

    Args:
        photographs: The samples.
        store: The texts.
        root: The folder that was searched for photographs, see ``photograph_key``; None for the bundled ones.

    Raises:
        UserError: Photographs have no text, which names the first few, or two of them cannot be told apart.
    """

    def __init__(self, photographs: RealISRDataset, store: TextStore, *, root: Path | None) -> None:
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
        sample = self._photographs.sample(bucket, place, index)
        text = self._store.embeddings(self._rows[self._photographs.photograph_at(bucket, place)])
        sample["prompt_embeds"] = text.prompt
        if text.pooled is not None:
            sample["pooled_prompt_embeds"] = text.pooled
        return sample
