"""Random-layer negatives: which other layer each layer is contrasted with."""

from __future__ import annotations

from typing import Literal

import numpy as np


def draw_negatives(
    num_layers: int, mode: Literal["cycle", "independent", "fixed"], seed: int, draw_index: int
) -> list[int]:
    """Draws for every layer i the index ``j(i) != i`` of its random-layer negative.

    ``cycle`` draws one random cyclic order of the layers and gives each layer its successor, so that a
    kernel which walks the cycle reads every layer once; ``independent`` draws each negative on its own. In
    both, each ``j(i)`` is uniform over the other layers. ``fixed`` draws nothing: the next layer in depth, and
    the first one for the last.

    A pure function of its arguments: every rank draws the same, and a resumed run needs the counter alone.
    It uses only the raw output of NumPy's Philox, which NumPy keeps the same from version to version.

    Args:
        num_layers: Number of student layers; at least 2.
        mode: ``"cycle"``, ``"independent"`` or ``"fixed"``.
        seed: Seed of the run; 0 or more.
        draw_index: Number of the draw; 0 or more.

    Returns:
        ``num_layers`` indices, each in ``0..num_layers - 1`` and other than its position.

    Raises:
        ValueError: An argument is out of range.
    """
    if num_layers < 2:
        raise ValueError(f"num_layers must be at least 2 for a layer to have another one, got {num_layers}")
    if seed < 0 or draw_index < 0:
        raise ValueError(f"seed and draw_index must be 0 or more, got {seed} and {draw_index}")
    if mode == "fixed":
        return [(layer + 1) % num_layers for layer in range(num_layers)]
    raw = np.random.Philox(np.random.SeedSequence((seed, draw_index))).random_raw(num_layers)
    if mode == "cycle":
        order = np.argsort(raw, kind="stable")
        successors = np.empty(num_layers, dtype=np.int64)
        successors[order] = np.roll(order, -1)
        return [int(layer) for layer in successors]
    if mode == "independent":
        # A step of 1..num_layers - 1 around the layers; the remainder's bias is below num_layers / 2**64.
        return [(layer + 1 + int(raw[layer]) % (num_layers - 1)) % num_layers for layer in range(num_layers)]
    raise ValueError(f"mode must be 'cycle', 'independent' or 'fixed', got {mode!r}")
