"""Group normalisation of tiles with the statistics of the whole image, as nearly as one more pass gives them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]


class SharedStatistics:
    """Means and variances of a module's group normalisations, averaged over the tiles that it has seen.

    Tiles that are normalised alike agree in tone. The statistics are those of features that were normalised tile by
    tile, which after the first normalisation are near those of the image, not equal to them.

    Args:
        module: An autoencoder, for example.
    """

    def __init__(self, module: nn.Module) -> None:
        self._norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
        self._sums: dict[nn.Module, Tensor] = {}
        self._seen: dict[nn.Module, int] = {}

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Within it, every call of a normalisation counts as a tile."""
        with self._hooked(self._measure):
            yield

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within it, normalisations take the averages instead of their input's own statistics."""
        with self._hooked(self._apply):
            yield

    @contextlib.contextmanager
    def _hooked(self, hook: Hook) -> Iterator[None]:
        handles = [norm.register_forward_hook(hook) for norm in self._norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _measure(self, norm: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Adds up the means of values and of their squares, ``[2, groups]``."""
        groups = _groups(norm, inputs[0])
        moments = torch.stack([groups.mean((0, 2)), groups.square().mean((0, 2))])
        self._sums[norm] = self._sums[norm] + moments if norm in self._sums else moments
        self._seen[norm] = self._seen.get(norm, 0) + 1

    def _apply(self, norm: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if norm not in self._sums:
            return None
        assert isinstance(norm, nn.GroupNorm)
        mean, square = self._sums[norm] / self._seen[norm]
        scale = torch.rsqrt((square - mean.square()).clamp(min=0) + norm.eps)
        normalised = (_groups(norm, inputs[0]) - mean[:, None]) * scale[:, None]
        shape = (1, -1, *[1] * (output.ndim - 2))
        result: Tensor = normalised.reshape(output.shape) * norm.weight.view(shape) + norm.bias.view(shape)
        return result.to(output.dtype)


def _groups(norm: nn.Module, x: Tensor) -> Tensor:
    """``[B, C, ...]`` as ``[B, groups, values]`` float32."""
    assert isinstance(norm, nn.GroupNorm)
    return x.float().reshape(x.shape[0], norm.num_groups, -1)
