"""Memory of a step: bytes kept for the backward pass, and the most that is in use at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live.

    It works under ``FakeTensorMode``, where no memory is used, so that a step of any size can be measured on any
    machine. What an operator allocates inside of itself and frees again is not seen.

    Example:
        with FakeTensorMode():
            model = build()
            with PeakMemory(model) as memory:
                step(model)
        memory.peak

    Args:
        modules: Modules whose parameters and buffers count from the start.

    Attributes:
        current: Bytes alive now.
        peak: The most bytes that were alive at once.
        peak_operator: The operator that reached it.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.current = self.peak = 0
        self.peak_operator = ""
        self._alive: dict[int, int] = {}
        for module in modules:
            for x in (*module.parameters(), *module.buffers()):
                self._see(x)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = self.peak
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._see(x)
        if self.peak > before:
            self.peak_operator = str(func)
        return result

    def _see(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        weakref.finalize(storage, self._forget, key)
        self.current += storage.nbytes()
        self.peak = max(self.peak, self.current)

    def _forget(self, key: int) -> None:
        self.current -= self._alive.pop(key)


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
