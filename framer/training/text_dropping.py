"""The empty text in the place of some images' own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from framer.models.text import TextEmbeddings
from framer.seeding import derived_seed


def drops_text(seed: int, index: int, probability: float) -> bool:
    """Whether a sample has the empty text in the place of its own.

    Args:
        seed: The run's.
        index: The sample's number in the training stream.
        probability: In [0, 1].
    """
    return bool(np.random.default_rng(derived_seed(seed, "null text", index)).random() < probability)


def with_texts_dropped(
    texts: TextEmbeddings, null: TextEmbeddings, indices: Sequence[int], seed: int, *, probability: float
) -> TextEmbeddings:
    """A batch's texts, ``[B, T, D]`` and ``[B, P]``, some of them the empty one by draws from seed and number alone.

    Args:
        texts: Each image's own, of the same shapes.
        null: The empty text, ``[T, D]`` and ``[P]``.
        indices: The samples' numbers in the training stream, length B.
        seed: The run's.
        probability: Of the empty text, in [0, 1].
    """
    dropped = torch.tensor([drops_text(seed, index, probability) for index in indices], device=texts.prompt.device)

    def mixed(own: Tensor, empty: Tensor) -> Tensor:
        return torch.where(dropped.view(-1, *[1] * empty.ndim), empty.to(own.device, own.dtype), own)

    pooled = None if texts.pooled is None or null.pooled is None else mixed(texts.pooled, null.pooled)
    return TextEmbeddings(mixed(texts.prompt, null.prompt), pooled)
