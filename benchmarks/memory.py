"""Memory of a step: bytes kept for the backward pass, and the most that is in use at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], object], *, without: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of ``forward``, every storage once.

    Args:
        forward: Runs the forward pass alone.
        without: Tensors whose storages do not count, because they are alive anyway: features and parameters.
    """
    excluded = {_storage_key(x) for x in without}
    saved: dict[int, Tensor] = {}  # the tensors are held, lest an address be used again

    def keep(x: Tensor) -> Tensor:
        if _storage_key(x) not in excluded:
            saved.setdefault(_storage_key(x), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = forward()
    total = sum(x.untyped_storage().nbytes() for x in saved.values())
    del result
    return total


def _storage_key(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def peak_allocated(step: Callable[[], object]) -> int:
    """The most bytes that ``step`` allocates at once beyond what is in use before, operators' insides included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    current = peak = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        current += change
        peak = max(peak, current)
    return peak
