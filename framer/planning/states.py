"""What DeepSpeed 0.19 holds of parameters, gradients and optimizer state, stage by stage, through a step.

Sizes follow its source: flat buffers are padded to twice the number of ranks (stages 1 and 2), partitions of a
parameter to the number of ranks (stage 3), and AdamW keeps two float32 numbers a weight. Each class below is one of its
optimizers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache, cached_property
from math import ceil
from typing import Any, Final, NamedTuple

import torch
from typing_extensions import override

from framer.config.training import TrainConfig
from framer.extras import require
from framer.meta_model import DTYPES
from framer.planning.ledger import Ledger
from framer.planning.storages import PeakMemory
from framer.training.engine import engine_config

WHOLE_REDUCTION_ELEMENTS: Final = 500_000_000
"""Elements that stage 0 reduces at once; DeepSpeed has no setting for it."""
NORM_BYTES: Final = 8
"""Gradient norms are computed in float64, a tensor at a time."""
_FP32: Final = 4


class EngineSettings(NamedTuple):
    """The settings of DeepSpeed that memory depends on, defaults filled in by DeepSpeed itself.

    Attributes:
        stage: ZeRO stage.
        itemsize: Bytes of a weight.
        accumulation_itemsize: Bytes of an accumulated gradient.
        communication_itemsize: Bytes of a gradient on its way between ranks.
        reduce_bucket: Elements.
        prefetch: Elements, stage 3.
        max_live: Elements, stage 3.
        max_reuse_distance: Elements, stage 3.
        persistence_threshold: Elements, stage 3.
        sub_group: Elements of the optimizer's state that are updated at once, stage 3.
        overlapping: Whether reductions overlap with the backward pass, which takes a second bucket.
        offload_optimizer: ``none``, ``cpu`` or ``nvme``.
        offload_param: ``none``, ``cpu`` or ``nvme``.
        swap_buffers: Elements of the host's buffers through which parameters come from ``nvme``.
    """

    stage: int
    itemsize: int
    accumulation_itemsize: int
    communication_itemsize: int
    reduce_bucket: int
    prefetch: int
    max_live: int
    max_reuse_distance: int
    persistence_threshold: int
    sub_group: int
    overlapping: bool
    offload_optimizer: str
    offload_param: str
    swap_buffers: int

    @classmethod
    def of(cls, config: TrainConfig) -> EngineSettings:
        """What the trainer tells DeepSpeed, and what DeepSpeed makes of it."""
        written = engine_config(config)
        zero = require("deepspeed.runtime.zero.config", extra="train").DeepSpeedZeroConfig(
            **written["zero_optimization"]
        )
        itemsize = DTYPES[config.training.precision].itemsize
        accumulation = written.get("data_types", {}).get("grad_accum_dtype")
        communication = written.get("communication_data_type")
        return cls(
            stage=int(zero.stage),
            itemsize=itemsize,
            accumulation_itemsize=itemsize if accumulation is None else DTYPES[accumulation].itemsize,
            communication_itemsize=itemsize if communication is None else DTYPES[communication].itemsize,
            reduce_bucket=int(zero.reduce_bucket_size),
            prefetch=int(zero.prefetch_bucket_size),
            max_live=int(zero.max_live_parameters),
            max_reuse_distance=int(zero.max_reuse_distance),
            persistence_threshold=int(zero.param_persistence_threshold),
            sub_group=int(zero.sub_group_size),
            overlapping=bool(zero.overlap_comm),
            offload_optimizer=written["zero_optimization"].get("offload_optimizer", {}).get("device", "none"),
            offload_param=written["zero_optimization"].get("offload_param", {}).get("device", "none"),
            swap_buffers=_swap_buffers(zero.offload_param),
        )


def _swap_buffers(offload: Any) -> int:
    return 0 if offload is None else int(offload.buffer_count) * int(offload.buffer_size)


@cache
def adamw_temporaries(numels: tuple[int, ...], *, foreach: bool) -> int:
    """Bytes that ``torch.optim.AdamW`` allocates while it updates float32 tensors, beside its state.

    Args:
        numels: Elements of every tensor.
        foreach: All tensors at once, as by default on GPUs, or one at a time, as on CPUs.
    """
    if not foreach:
        numels = (max(numels),)
    tensors = [torch.nn.Parameter(torch.empty(numel, device="meta")) for numel in numels]
    optimizer = torch.optim.AdamW(tensors, foreach=foreach)
    with PeakMemory(device="meta") as memory:
        for step in range(2):  # the first one makes the state
            for tensor in tensors:
                tensor.grad = torch.empty_like(tensor)
            if step:
                before = memory.current
                memory.restart()
            optimizer.step()
    return int(memory.peak - before)


@dataclass
class EngineStates(ABC):
    """One of DeepSpeed's optimizers, as a rank's accounts see it.

    Attributes:
        settings: DeepSpeed's.
        numels: Elements of every parameter that trains, in the model's order.
        frozen: Elements of every other parameter.
        world_size: Number of ranks.
        rank: The rank.
        accumulating: Whether earlier micro-steps of the same optimizer step have left gradients.
        foreach: As :func:`adamw_temporaries`.
        device: Accounts of the device.
        host: Accounts of the host's memory.
    """

    settings: EngineSettings
    numels: tuple[int, ...]
    frozen: tuple[int, ...]
    world_size: int
    rank: int
    accumulating: bool
    foreach: bool
    device: Ledger
    host: Ledger

    @property
    def total(self) -> int:
        """Elements that train."""
        return sum(self.numels)

    @abstractmethod
    def begin(self) -> None:
        """Holds what lives through the whole run, and what earlier micro-steps left."""

    @abstractmethod
    def gradient(self, index: int) -> None:
        """A gradient is ready, of the parameter at this place among those that train; it counts as an activation."""

    @abstractmethod
    def reduce(self) -> None:
        """The backward pass has ended."""

    @abstractmethod
    def update(self) -> None:
        """The optimizer step."""

    @property
    def _offloaded(self) -> bool:
        """Whether optimizer state and master weights are elsewhere than on the device."""
        return self.settings.offload_optimizer != "none"

    def _hold_frozen(self) -> None:
        self.device.hold("parameters", sum(self.frozen) * self.settings.itemsize)


class WholeStates(EngineStates):
    """Stage 0, in float32 alone: torch's AdamW on the parameters themselves."""

    @override
    def begin(self) -> None:
        self._hold_frozen()
        self.device.hold("parameters", self.total * _FP32)
        self.device.hold("optimizer states", 2 * self.total * _FP32)
        if self.accumulating:
            self.device.hold("gradients", self.total * _FP32)

    @override
    def gradient(self, index: int) -> None:
        if not self.accumulating:
            self.device.hold("gradients", self.numels[index] * _FP32)

    @override
    def reduce(self) -> None:
        bucket = largest = 0
        for numel in self.numels:
            bucket += numel
            largest = max(largest, bucket)
            if bucket > WHOLE_REDUCTION_ELEMENTS:
                bucket = 0
        self.device.note(temporaries=largest * _FP32)

    @override
    def update(self) -> None:
        self.device.note(temporaries=max(self.numels) * NORM_BYTES)
        self.device.note(temporaries=adamw_temporaries(self.numels, foreach=self.foreach))


@dataclass
class BucketStates(EngineStates):
    """Stages 1 and 2: a flat copy of the weights, of which each rank updates one part; a bucket takes it the gradients.

    Where gradients are accumulated in a wider type than the weights', the rank's part is one flat buffer of that type;
    otherwise it is what the reduction leaves of the parameters in it.
    """

    _elements: int = 0
    _waiting: tuple[int, ...] = ()
    _bucketed: bool = False
    _kept: bool = False

    @cached_property
    def padded(self) -> int:
        """Elements of the flat copy."""
        alignment = 2 * self.world_size
        return ceil(self.total / alignment) * alignment

    @property
    def partition(self) -> int:
        """Elements that this rank updates."""
        return self.padded // self.world_size

    @cached_property
    def own(self) -> frozenset[int]:
        """Parameters of which a part is in this rank's partition."""
        begin, end, offset = self.rank * self.partition, (self.rank + 1) * self.partition, 0
        found = set()
        for index, numel in enumerate(self.numels):
            if offset < end and offset + numel > begin:
                found.add(index)
            offset += numel
        return frozenset(found)

    @property
    def own_elements(self) -> int:
        """Elements of these parameters, those that straddle the boundary whole."""
        return sum(self.numels[index] for index in self.own)

    @property
    def wider(self) -> bool:
        """Whether gradients are accumulated in a wider type than the weights'."""
        return self.settings.accumulation_itemsize != self.settings.itemsize

    @override
    def begin(self) -> None:
        settings = self.settings
        self._hold_frozen()
        self.device.hold("parameters", self.padded * settings.itemsize)
        where = self.device
        if self._offloaded:
            where = self.host
            largest = max(self.numels) * settings.itemsize
            self.device.hold("buckets", largest)
            self.host.hold("buckets", largest + self.partition * settings.itemsize)
            self.host.hold("gradients", self.partition * _FP32)
        where.hold("master weights", self.partition * _FP32)
        where.hold("optimizer states", 2 * self.partition * _FP32)
        if self.accumulating:
            self._begin_accumulated()

    def _begin_accumulated(self) -> None:
        if self.settings.stage == 1:
            self._open_bucket()
            self.device.hold("gradients", self.total * self.settings.itemsize)
        elif self._offloaded and not self.wider:
            self.host.hold("gradients", self.own_elements * self.settings.itemsize)
        else:
            self._keep_partition()
            self._kept = self.wider

    @override
    def gradient(self, index: int) -> None:
        self._open_bucket()
        if self.settings.stage == 1:
            if not self.accumulating:
                self.device.hold("gradients", self.numels[index] * self.settings.itemsize)
        else:
            self._stage(index)

    @override
    def reduce(self) -> None:
        if self.settings.stage == 1:
            for index in range(len(self.numels)):
                self._stage(index)
        self._flush()
        self._keep_partition()
        self.device.note()
        if self.accumulating and self.settings.stage == 2 and not (self.wider or self._offloaded):
            # This micro-step's gradients have been added to those of the ones before.
            self.device.release("gradients", self.own_elements * self.settings.itemsize)
        buckets = 2 if self.settings.overlapping else 1
        self.device.release("buckets", buckets * self.settings.reduce_bucket * self.settings.itemsize)
        self._bucketed = False

    @override
    def update(self) -> None:
        kept = self.device.held("gradients")
        self.device.note(temporaries=min(self.partition, max(self.numels)) * NORM_BYTES)
        if self._offloaded:
            self._update_partition()
            return
        if not self.wider:
            self.device.note(temporaries=self.partition * _FP32)
        self.device.release("gradients", kept)
        self.device.hold("gradients", self.partition * _FP32)
        self._update_partition()

    def _open_bucket(self) -> None:
        if not self._bucketed:
            buckets = 2 if self.settings.overlapping else 1
            self.device.hold("buckets", buckets * self.settings.reduce_bucket * self.settings.itemsize)
            self._bucketed = True

    def _stage(self, index: int) -> None:
        numel = self.numels[index]
        if self._elements + numel > self.settings.reduce_bucket:
            self._flush()
        large = numel > self.settings.reduce_bucket
        if self.settings.stage == 1 and not large:
            self.device.release("gradients", numel * self.settings.itemsize)
        if self.settings.stage != 1 and large:
            self.device.hold("gradients", numel * self.settings.itemsize)
        self._elements += numel
        self._waiting += (index,)

    def _flush(self) -> None:
        settings = self.settings
        if not self._waiting:
            return
        if self.own.intersection(self._waiting) and self.wider:
            self._keep_partition()
        widened = settings.communication_itemsize if settings.communication_itemsize != self.settings.itemsize else 0
        flattened = self.settings.itemsize if self._slices() > 1 else 0
        self.device.note(temporaries=self._elements * (flattened + widened))
        if self.own.intersection(self._waiting):
            self._keep_partition()
            self.device.note()
        for index in self._waiting:
            if self.numels[index] > settings.reduce_bucket:
                self.device.release("gradients", self.numels[index] * self.settings.itemsize)
        self._elements, self._waiting = 0, ()

    def _slices(self) -> int:
        """Pieces that a bucket is reduced in; a single one is reduced where it is."""
        begin, places = 0, []
        for index, numel in enumerate(self.numels):
            if index in self._waiting:
                places.append((begin // self.partition, (begin + numel - 1) // self.partition))
            begin += numel
        ranks = {rank for first, last in places for rank in range(first, last + 1)}
        own = sum(first <= self.rank <= last for first, last in places) if self.wider else 0
        return max(len(ranks), own)

    def _keep_partition(self) -> None:
        """The buffer of this rank's gradients, made when the first of them is reduced."""
        if self._kept:
            return
        self._kept = True
        settings = self.settings
        if self.wider:
            self.device.hold("gradients", self.partition * settings.accumulation_itemsize)
        elif not self._offloaded:
            self.device.hold("gradients", self.own_elements * settings.itemsize)

    def _update_partition(self) -> None:
        """AdamW on the one flat tensor."""
        where = self.host if self._offloaded else self.device
        foreach = self.foreach and where is self.device
        where.note(temporaries=adamw_temporaries((self.partition,), foreach=foreach))


@dataclass
class PartitionedStates(EngineStates):
    """Stage 3: parameters, gradients and optimizer state are partitioned, each parameter by itself."""

    _elements: int = 0
    _waiting: tuple[int, ...] = ()

    def share(self, numel: int) -> int:
        """Elements of a parameter that a rank holds."""
        return ceil(numel / self.world_size)

    @cached_property
    def partition(self) -> int:
        """Elements that this rank updates."""
        return sum(map(self.share, self.numels))

    @cached_property
    def sub_groups(self) -> tuple[int, ...]:
        """Elements that are updated at once, one group after the other."""
        groups, current = [], 0
        for numel in self.numels:
            current += self.share(numel)
            if current >= self.settings.sub_group:
                groups.append(current)
                current = 0
        return (*groups, current) if current else tuple(groups)

    @override
    def begin(self) -> None:
        settings = self.settings
        shares = self.partition + sum(map(self.share, self.frozen))
        if settings.offload_param == "nvme":
            self.host.hold("buckets", settings.swap_buffers * settings.itemsize)
        else:
            where = self.device if settings.offload_param == "none" else self.host
            where.hold("parameters", shares * settings.itemsize)
        if self.world_size > 1 or settings.offload_param != "none":
            persistent = [n for n in (*self.numels, *self.frozen) if n <= settings.persistence_threshold]
            self.device.hold("parameters", sum(persistent) * settings.itemsize)
        where = self.host if self._offloaded else self.device
        where.hold("gradients", self.partition * settings.accumulation_itemsize)
        if settings.offload_optimizer == "nvme":
            # One group is read, updated and written at a time.
            where.hold("optimizer states", 4 * max(self.sub_groups) * _FP32)
        else:
            where.hold("master weights", self.partition * _FP32)
            where.hold("optimizer states", 2 * self.partition * _FP32)
            if where is self.host:
                where.hold("gradients", self.partition * _FP32)
        self.device.hold("buckets", settings.reduce_bucket * settings.communication_itemsize)

    @override
    def gradient(self, index: int) -> None:
        numel = self.numels[index]
        if self._elements and self._elements + numel > self.settings.reduce_bucket:
            self._flush()
        if numel > self.settings.reduce_bucket:
            self.device.hold("gradients", numel * self.settings.itemsize)
        self._elements += numel
        self._waiting += (index,)

    @override
    def reduce(self) -> None:
        self._flush()
        self.device.note()

    @override
    def update(self) -> None:
        where = self.host if self._offloaded else self.device
        self.device.note()
        for group in self.sub_groups:
            flattened = group * _FP32 if where is self.device else 0
            foreach = self.foreach and where is self.device
            where.note(temporaries=flattened + adamw_temporaries((group,), foreach=foreach))

    def _flush(self) -> None:
        settings = self.settings
        if not self._waiting:
            return
        padded = sum(self.share(self.numels[index]) * self.world_size for index in self._waiting)
        large = [self.numels[index] for index in self._waiting if self.numels[index] > settings.reduce_bucket]
        converted = settings.communication_itemsize if settings.communication_itemsize != settings.itemsize else 0
        single = len(self._waiting) == 1 and padded == self._elements
        joined = 0 if single else padded * settings.communication_itemsize
        self.device.note(temporaries=sum(large) * converted + joined)
        self.device.release("gradients", sum(large) * settings.itemsize)
        self._elements, self._waiting = 0, ()


def states_class(settings: EngineSettings) -> type[EngineStates]:
    """Which of DeepSpeed's optimizers a configuration gets."""
    if settings.stage == 0:
        return WholeStates
    if settings.stage == 3:
        return PartitionedStates
    return BucketStates
