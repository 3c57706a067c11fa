"""One micro-step of the trainer, run without storage: what is alive when, and what happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from framer.config.training import TrainConfig
from framer.data.dataset import Sample
from framer.data.shards.manifest import read_manifest
from framer.data.sources import shard_folder
from framer.distill import Framer
from framer.features import adapter_for
from framer.flops import operator_flops
from framer.meta_model import META, crop_sizes, meta_encoder, meta_model
from framer.models.meta_attention import planned_attention
from framer.models.restoration_model import RestorationModel
from framer.planning.partitioning import PartitioningEvents, memory_efficient_linear, plain_linear
from framer.planning.storages import PeakMemory
from framer.training.activation_checkpointing import enable_activation_checkpointing
from framer.training.forward import ForwardPass

OPERATORS: Final = "operators"
BACKWARD: Final = "backward"
GRADIENT: Final = "gradient"
FRAMER: Final = "framer"
END: Final = "end"


class Moment(NamedTuple):
    """A moment of the micro-step.

    Attributes:
        bytes: Alive: activations, inputs, the loss and gradients on their way. Parameters, buffers and gradients that
            were handed over do not count.
        event: ``operators``: the most that the operators since the last moment reached; ``backward``: the backward pass
            begins; ``gradient``: of one parameter, ready; ``framer``: an operator of FRAMER's has run; ``end``: of the
            backward pass; those of :mod:`framer.planning.partitioning`.
        which: Which parameter or module; -1 where none is meant.
    """

    bytes: int
    event: str
    which: int


class ParameterSize(NamedTuple):
    """A parameter: its name, number of elements, and whether it trains."""

    name: str
    numel: int
    trained: bool


class StepFlops(NamedTuple):
    """Floating-point operations of a micro-step of one rank.

    Attributes:
        forward: The model's forward pass and the noise loss.
        backward: Its gradients.
        recomputation: Blocks computed again in the backward pass.
        framer: FRAMER's loss and its gradient.
    """

    forward: int = 0
    backward: int = 0
    recomputation: int = 0
    framer: int = 0


class FeatureMaps(NamedTuple):
    """One block's feature maps of all samples of a rank; nothing without FRAMER.

    Attributes:
        elements: Of the maps together.
        itemsize: Bytes of an element.
    """

    elements: int = 0
    itemsize: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of the maps."""
        return self.elements * self.itemsize


class MicroStep(NamedTuple):
    """What one micro-step does.

    Attributes:
        moments: In order.
        parameters: In the model's order.
        blocks: Names of the model's blocks.
        module_parameters: For every module, in the order of ``named_modules``, indices of its own parameters.
        buffer_bytes: Of the model's buffers, and of the frozen models beside it.
        host_bytes: The most that activations took in the host's memory.
        flops: By part; not told apart, and zero, where parameters are partitioned.
        features: What FRAMER compares.
    """

    moments: tuple[Moment, ...]
    parameters: tuple[ParameterSize, ...]
    blocks: tuple[str, ...]
    module_parameters: tuple[tuple[int, ...], ...]
    buffer_bytes: int
    host_bytes: int
    flops: StepFlops
    features: FeatureMaps


class _Recorder(PeakMemory):  # type: ignore[no-untyped-call]
    """Records moments and operations; stands in for the host's memory."""

    def __init__(self) -> None:
        super().__init__(device=META.type)
        self.moments: list[Moment] = []
        self.flops = dict.fromkeys(StepFlops._fields, 0)
        self.host = PeakMemory(device="cpu")
        self.features = FeatureMaps()
        self._highest = 0
        self._backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("device") == torch.device("cpu"):
            # There is nothing to be copied. Memory that is not written to is not taken.
            copy = torch.empty_strided(args[0].shape, args[0].stride(), dtype=args[0].dtype, device="cpu")
            self.host.see(copy)
            return copy
        return super().__torch_dispatch__(func, types, args, kwargs)

    def after(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        self._highest = max(self._highest, self.current)
        flops = operator_flops(func, args, kwargs, result)
        if flops:
            self.flops[self._part(func)] += flops
        if func.namespace == "framer_kernels":
            teacher = next(x for x in args if isinstance(x, Tensor) and x.ndim == 4)
            self.features = FeatureMaps(teacher.numel(), teacher.element_size())
            self.event(FRAMER)

    def _part(self, func: Any) -> str:
        if func.namespace == "framer_kernels":
            return "framer"
        if not self._backward:
            return "forward"
        return "recomputation" if torch.is_grad_enabled() else "backward"

    def event(self, event: str, index: int = -1) -> None:
        """Something happens now."""
        if self._highest:
            self.moments.append(Moment(self._highest, OPERATORS, -1))
        self.moments.append(Moment(self.current, event, index))
        self._highest = 0
        self._backward = self._backward or event == BACKWARD

    def hand_over(self, index: int) -> Callable[[Tensor], None]:
        """A hook that takes away a parameter's gradient as soon as it is ready."""

        def hook(parameter: Tensor) -> None:
            self.event(GRADIENT, index)
            parameter.grad = None

        return hook


def trace_micro_step(config: TrainConfig, *, partitioned: bool = False) -> MicroStep:
    """Runs a micro-step of one rank, of the largest crops that the configuration asks for, on tensors without storage.

    The model, its checkpointing, the objective and FRAMER's loss are the trainer's own. In-batch negatives are those of
    one rank: what other ranks send is held within operators, which are not seen from outside
    (:func:`framer.planning.memory.framer_workspace`).

    Args:
        config: The run.
        partitioned: Whether parameters are partitioned (stage 3), which changes what linear layers keep and adds
            moments at which parameters are needed.

    Raises:
        UserError: The model cannot be planned.
    """
    model = meta_model(config, with_heads=True)
    enable_activation_checkpointing(model, config.training.activation_checkpointing)
    encoder = meta_encoder(config.framer)
    framer: Framer | None = None
    if config.framer.enabled:
        framer = Framer(model, config.framer, prediction_type=config.objective.feature_prediction, encoder=encoder)
    restoration = RestorationModel(model, config.model, META)
    forward = ForwardPass(restoration, _without_perceptual_loss(config), framer)
    base = forward.base_model.model if forward.base_model is not None else None
    frozen: list[Tensor] = []
    for module in (encoder, restoration.latents.vae, base):
        if module is not None:
            frozen += [*module.parameters(), *module.buffers()]
    memory = _Recorder()
    for tensor in (*model.parameters(), *model.buffers(), *frozen):
        memory.leave_out(tensor)
    for index, parameter in enumerate(model.parameters()):
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(memory.hand_over(index))
    if partitioned:
        PartitioningEvents(memory.event).watch(model)
    linear: AbstractContextManager[None] = memory_efficient_linear() if partitioned else plain_linear()
    with planned_attention(config.model), linear, memory:
        _run(forward, model, config, memory)
    return MicroStep(
        moments=tuple(memory.moments),
        parameters=tuple(ParameterSize(n, p.numel(), p.requires_grad) for n, p in model.named_parameters()),
        blocks=adapter_for(model).block_names,
        module_parameters=_own_parameters(model),
        buffer_bytes=sum(tensor.nbytes for tensor in (*model.buffers(), *frozen)),
        host_bytes=memory.host.peak,
        flops=StepFlops() if partitioned else StepFlops(**memory.flops),
        features=memory.features,
    )


def _without_perceptual_loss(config: TrainConfig) -> TrainConfig:
    """Neither its library nor its weights are there in planning; what it takes is not counted."""
    if not config.objective.lpips_weight:
        return config
    weight = config.objective.l2_weight or config.objective.lpips_weight
    objective = config.objective.model_copy(update={"lpips_weight": 0.0, "l2_weight": weight})
    return config.model_copy(update={"objective": objective})


def _run(forward: ForwardPass, model: nn.Module, config: TrainConfig, memory: _Recorder) -> None:
    losses = forward.losses(model, _batch(config))
    loss = losses.noise + losses.framer
    memory.event(BACKWARD)
    loss.backward()  # type: ignore[no-untyped-call]
    memory.event(END)  # the batch and the losses live through the optimizer step


def _batch(config: TrainConfig) -> Sample:
    count, scale = config.training.batch_size, config.data.scale
    height, width = max(crop_sizes(config.data), key=lambda size: size[0] * size[1])

    def images(factor: int) -> Tensor:
        return torch.empty(count, 3, height // factor, width // factor, device=META)

    batch = {
        "hr": images(1),
        "lr": images(scale),
        "lr_upsampled": images(1),
        "index": torch.arange(count, device="cpu"),
    }
    folder = shard_folder(config.data)
    latents = None if folder is None else read_manifest(folder).latents
    if latents is not None:  # nothing is encoded then
        shape = (count, latents.channels, height // latents.downscale, width // latents.downscale)
        for name in ("hr_latents_mean", "hr_latents_logvar", "lr_latents_mean"):
            batch[name] = torch.empty(shape, device=META)
    return batch  # type: ignore[return-value]


def _own_parameters(model: nn.Module) -> tuple[tuple[int, ...], ...]:
    indices = {id(parameter): index for index, parameter in enumerate(model.parameters())}
    return tuple(
        tuple(indices[id(parameter)] for parameter in module.parameters(recurse=False)) for module in model.modules()
    )
