"""Random numbers as pure functions of what they are for, so that any of them can be drawn again."""

from __future__ import annotations

import random
import zlib

import numpy as np
import torch
from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all ``parts`` and on their order, but for zeros at the end.

    Args:
        parts: Non-negative integers and strings, for example ``(run_seed, "noise", sample_index)``; a string of its own
            for each purpose, because integers alone can coincide: ``(2**32,)`` is ``(0, 1)``.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with :func:`derived_seed`; the same numbers on every machine and rank."""
    return torch.Generator().manual_seed(derived_seed(*parts))


def normal_per_sample(shape: torch.Size | tuple[int, ...], indices: list[int], *parts: int | str) -> Tensor:
    """Standard normal numbers, each sample's drawn from its own index.

    A batch split over ranks or micro-steps in any way gets the same numbers.

    Args:
        shape: Shape of one sample.
        indices: Index of each sample, length B.
        parts: What the numbers are for, see :func:`derived_seed`.

    Returns:
        float32 ``[B, *shape]`` on the CPU.
    """
    return torch.stack([torch.randn(shape, generator=generator(*parts, index)) for index in indices])


def integer_per_sample(low: int, high: int, indices: list[int], *parts: int | str) -> Tensor:
    """Uniform integers from ``low`` to below ``high``, each sample's drawn from its own index.

    Args:
        low: Smallest integer.
        high: One above the largest.
        indices: Index of each sample, length B.
        parts: What the numbers are for, see :func:`derived_seed`.

    Returns:
        int64 ``[B]`` on the CPU.
    """
    return torch.cat([torch.randint(low, high, (1,), generator=generator(*parts, index)) for index in indices])


def seed_generators(seed: int) -> None:
    """Seeds the global generators of torch, Python and NumPy, for code that draws from them."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global generator is the one that others draw from)
