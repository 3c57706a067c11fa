"""Counting the bytes that tensors take, storage by storage."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations make, while they live.

    It works on real tensors, under ``FakeTensorMode`` and on the device ``meta``, where no memory is used, so that a
    step of any size can be measured on any machine. What an operator allocates inside of itself and frees again is not
    seen.

    Example:
        with FakeTensorMode():
            model = build()
            with PeakMemory(model) as memory:
                step(model)
        memory.peak

    Args:
        modules: Modules whose parameters and buffers count from the start.
        device: Type of the device whose storages count; all by default.

    Attributes:
        current: Bytes alive now.
        peak: The most bytes that were alive at once.
        peak_operator: The operator that reached it.
    """

    def __init__(self, *modules: nn.Module, device: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self.peak_operator = ""
        self._device = device
        self._alive: dict[int, int] = {}
        for module in modules:
            for x in (*module.parameters(), *module.buffers()):
                self.see(x)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        before = self.peak
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self.see(x)
        if self.peak > before:
            self.peak_operator = str(func)
        self.after(func, args, kwargs, result)
        return result

    def after(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Called after every operator; for subclasses that keep more than the peak."""

    def see(self, x: Tensor) -> None:
        """Counts a tensor's storage from now on, unless it is counted already."""
        if self._device is not None and x.device.type != self._device:
            return
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        weakref.finalize(storage, self._forget, key)
        self.current += storage.nbytes()
        self.peak = max(self.peak, self.current)

    def leave_out(self, x: Tensor) -> None:
        """Never counts a tensor's storage, nor those of its views."""
        self.see(x)
        key = x.untyped_storage()._cdata
        self.current -= self._alive.get(key, 0)
        self._alive[key] = 0
        self.peak = self.current

    def restart(self) -> None:
        """Forgets the peak, not what is alive."""
        self.peak, self.peak_operator = self.current, ""

    def _forget(self, key: int) -> None:
        self.current -= self._alive.pop(key)
