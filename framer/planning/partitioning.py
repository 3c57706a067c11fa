"""Parameters partitioned over ranks (ZeRO stage 3): when modules need theirs, and which are whole on a rank when.

What DeepSpeed 0.19 does: a module's own parameters are gathered before it runs forward and before its backward pass,
and given up after each; from the second step on, the parameters of the modules that follow are gathered ahead
(``stage3_prefetch_bucket_size``), and those that are needed again soon stay (``stage3_max_reuse_distance``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from framer.extras import require
from framer.patching import replaced

NEEDED_FORWARD: Final = "needed forward"
DONE_FORWARD: Final = "done forward"
NEEDED_BACKWARD: Final = "needed backward"
DONE_BACKWARD: Final = "done backward"
NEEDED: Final = (NEEDED_FORWARD, NEEDED_BACKWARD)
DONE: Final = (DONE_FORWARD, DONE_BACKWARD)


@contextmanager
def memory_efficient_linear() -> Iterator[None]:
    """Linear layers as stage 3 makes them, which keep the parameter and not a view of its gathered storage."""
    wrapped = require("deepspeed.runtime.zero.linear", extra="train").zero3_linear_wrap
    with replaced(torch.nn.functional, "linear", wrapped):
        yield


@contextmanager
def plain_linear() -> Iterator[None]:
    """Linear layers as torch makes them: stage 3 leaves its own in the whole process, also where it has ended."""
    with replaced(torch.nn.functional, "linear", torch._C._nn.linear):
        yield


class PartitioningEvents:
    """Reports when modules need their parameters and when they are done with them.

    A module's backward pass begins with the gradient of one of its outputs, and ends with those of all inputs that were
    passed by position.

    Args:
        report: Called with the event and the module's index in ``named_modules``.
    """

    def __init__(self, report: Callable[[str, int], None]) -> None:
        self._report = report
        self._awaited: dict[int, int] = {}

    def watch(self, model: nn.Module) -> None:
        """Registers hooks on all modules."""
        for index, module in enumerate(model.modules()):
            module.register_forward_pre_hook(self._before(index))
            module.register_forward_hook(self._after(index))

    def _before(self, index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            self._report(NEEDED_FORWARD, index)
            self._awaited[index] = sum(isinstance(x, Tensor) and x.requires_grad for x in inputs)

            def arrived() -> None:
                self._awaited[index] -= 1
                if self._awaited[index] == 0:
                    self._report(DONE_BACKWARD, index)

            return _marked(inputs, arrived)

        return hook

    def _after(self, index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            self._report(DONE_FORWARD, index)

            def begins() -> None:
                self._report(NEEDED_BACKWARD, index)

            if isinstance(output, Tensor):
                return _marked((output,), begins)[0]
            if isinstance(output, tuple):
                return _marked(output, begins)
            return output

        return hook


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, call: Callable[[], None]) -> Tensor:
        ctx.call = call
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.call()
        return gradients[0], None


def _marked(tensors: tuple[Any, ...], call: Callable[[], None]) -> tuple[Any, ...]:
    return tuple(
        _Mark.apply(x, call) if isinstance(x, Tensor) and x.requires_grad else x  # type: ignore[no-untyped-call]
        for x in tensors
    )


class Partitioned(NamedTuple):
    """How parameters are spread.

    Attributes:
        numel: Of every parameter.
        modules: For every module, indices of its own parameters.
        world_size: Number of ranks.
        offloaded: Whether the partitions are elsewhere than on the device.
        itemsize: Bytes of an element.
        persistence_threshold: Parameters with no more elements stay whole.
        prefetch: Elements gathered ahead.
        max_live: Elements that may be whole at once before prefetching stops.
        max_reuse_distance: Elements between two uses, within which parameters stay whole.
    """

    numel: tuple[int, ...]
    modules: tuple[tuple[int, ...], ...]
    world_size: int
    offloaded: bool
    itemsize: int
    persistence_threshold: int
    prefetch: int
    max_live: int
    max_reuse_distance: int

    def persistent(self, parameter: int) -> bool:
        """Whether a parameter is never partitioned."""
        return self.numel[parameter] <= self.persistence_threshold


@dataclass
class _Gather:
    """Parameters on their way: one buffer, from which all are copied out when the first of them is needed."""

    buffer: int
    copied: bool = False


@dataclass
class WholeParameters:
    """Which parameters are whole on a rank, by the events of a step.

    Attributes:
        layout: The parameters and how they are spread.
        order: The indices of modules in the order in which they are needed in a step.
        gathered: Elements received over the step, own shares included.
    """

    layout: Partitioned
    order: Sequence[int]
    gathered: int = 0
    _step: int = 0
    _whole: set[int] = field(default_factory=set)
    _users: dict[int, set[int]] = field(default_factory=dict)
    _flying: dict[int, _Gather] = field(default_factory=dict)
    _fetched_for: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._queue = deque(
            (parameter, step) for step, module in enumerate(self.order) for parameter in self._own(module)
        )
        self._uses: dict[int, list[int]] = {}
        self._passed = [0]
        for step, module in enumerate(self.order):
            for parameter in self._own(module):
                self._uses.setdefault(parameter, []).append(step)
            self._passed.append(self._passed[-1] + sum(self.layout.numel[p] for p in self._own(module)))

    @property
    def bytes(self) -> int:
        """Bytes of whole parameters that are partitioned otherwise, and of buffers of those on their way."""
        if self.layout.world_size == 1 and not self.layout.offloaded:
            return 0  # the partition is the parameter
        size = self.layout.itemsize
        whole = sum(self.layout.numel[p] for p in self._whole)
        gathers = {id(gather): gather for gather in self._flying.values()}.values()
        copied = sum(self.layout.numel[p] for p, gather in self._flying.items() if gather.copied or gather.buffer == 0)
        return size * (whole + copied + sum(gather.buffer for gather in gathers))

    def needed(self, module: int) -> int:
        """A module needs its parameters.

        Returns:
            The most bytes, as `bytes`, on the way there.
        """
        own = self._own(module)
        self._gather([p for p in own if p not in self._whole and p not in self._flying])
        highest = self.bytes
        for parameter in own:
            self._users.setdefault(parameter, set()).add(module)
            gather = self._flying.get(parameter)
            if gather is None:
                continue
            gather.copied = True
            highest = max(highest, self.bytes)
            del self._flying[parameter]
            self._whole.add(parameter)
        self._prefetch(own)
        self._step += 1
        return max(highest, self.bytes)

    def done(self, module: int) -> None:
        """A module is done with its parameters."""
        for parameter in self._own(module):
            self._users.get(parameter, set()).discard(module)
            if parameter in self._whole and not self._users[parameter] and not self._stays(parameter):
                self._whole.discard(parameter)

    def _own(self, module: int) -> list[int]:
        return sorted(p for p in set(self.layout.modules[module]) if not self.layout.persistent(p))

    def _stays(self, parameter: int) -> bool:
        if self._fetched_for.get(parameter, -1) > self._step:
            return True
        uses = self._uses.get(parameter, [])
        following = bisect_left(uses, self._step)
        if following == len(uses):
            return False
        return self._passed[uses[following]] - self._passed[self._step] < self.layout.max_reuse_distance

    def _gather(self, parameters: list[int]) -> None:
        if not parameters:
            return
        shares = sum(ceil(self.layout.numel[p] / self.layout.world_size) for p in parameters)
        self.gathered += shares * self.layout.world_size
        # A single parameter is gathered in place; several are copied out of one buffer.
        buffer = 0 if len(parameters) == 1 or self.layout.world_size == 1 else shares * self.layout.world_size
        gather = _Gather(buffer)
        self._flying.update(dict.fromkeys(parameters, gather))

    def _prefetch(self, own: list[int]) -> None:
        discarded: set[int] = set()
        missing = {p for p in own if self._fetched_for.get(p, -1) < self._step}
        while self._queue and len(discarded) < len(missing):
            parameter, step = self._queue.popleft()
            self._fetched_for[parameter] = step
            discarded.add(parameter)
        if not self.layout.prefetch:
            return
        live = sum(self.layout.numel[p] for p in (*self._whole, *self._flying))
        room = min(self.layout.max_live - live, self.layout.prefetch)
        chosen: list[int] = []
        taken = 0
        while self._queue and taken < room:
            parameter, step = self._queue.popleft()
            self._fetched_for[parameter] = max(self._fetched_for.get(parameter, -1), step)
            if parameter not in self._whole and parameter not in self._flying and parameter not in chosen:
                chosen.append(parameter)
                taken += self.layout.numel[parameter]
        self._gather(chosen)
