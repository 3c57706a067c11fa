"""What computes a model's attention: diffusers' backends, each checked before anything trains with it.

Processors of diffusers' newer models send attention to its dispatcher, which knows all backends. Older ones, those of
Stable Diffusion 3 and of U-Nets among them, call torch themselves: for these there are torch's own kernels, and
xformers where diffusers has a processor for it. A backend that not every attention of a model takes is refused.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from framer.errors import ConfigError, UserError
from framer.extras import how_to_install
from framer.models.attention import attention_modules

SETTING: Final = "model.attention_backend"
NATIVE: Final = "native"
TORCH_KERNELS: Final[Mapping[str, SDPBackend]] = {
    "_native_math": SDPBackend.MATH,
    "_native_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "_native_flash": SDPBackend.FLASH_ATTENTION,
    "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""torch's kernels of ``scaled_dot_product_attention``, by diffusers' names."""
XFORMERS: Final = "xformers"

_XFORMERS_PROCESSORS: Final[Mapping[str, str]] = {
    "JointAttnProcessor2_0": "XFormersJointAttnProcessor",
    "AttnProcessor2_0": "XFormersAttnProcessor",
    "AttnAddedKVProcessor2_0": "XFormersAttnAddedKVProcessor",
}
"""By class, what diffusers puts in a processor's place; others it would replace by one that computes something else."""
_ANY_DEVICE: Final = (NATIVE, "_native_math", "_native_flash", "flex")
_OTHER_DEVICES: Final[Mapping[str, str]] = {"_native_npu": "npu", "_native_xla": "xla"}
_HALF_PRECISION: Final = ("flash", "_flash", "aiter", "_native_cudnn")
_NO_GRADIENT: Final = ("sage", "_sage")
_KERNEL: Final = "_framer_kernel"
"""Attribute of processors that are limited to one of torch's kernels: which one."""
_PROBE_TOKENS: Final = 32
_PROBE_TOLERANCE: Final = 0.05
"""Relative; above what bf16 and TF32 round, and below what any mistake makes."""


def check_attention_backend(name: str, *, device: torch.device, dtype: torch.dtype) -> None:
    """Checks that this machine can train with a backend, as far as can be told without a model.

    Args:
        name: As diffusers names it.
        device: Where the model trains.
        dtype: Of its queries, keys and values.

    Raises:
        ConfigError: There is no such backend.
        UserError: It cannot train here; the message says all that is missing.
    """
    backend = _backend(name)
    lacking = []
    if name.startswith(_NO_GRADIENT):
        lacking.append("it computes no gradients, and is for inference alone")
    needed = _OTHER_DEVICES.get(name, None if name in _ANY_DEVICE else "cuda")
    if needed is not None and device.type != needed:
        lacking.append(f"it needs a device of type {needed}, and the model trains on {device.type}")
    half = name.startswith(_HALF_PRECISION) or (name == "_native_flash" and device.type == "cuda")
    if half and dtype not in (torch.float16, torch.bfloat16):
        lacking.append(f"it computes in half precision, and the model in {dtype}: set training.precision")
    try:
        attention_dispatch._check_attention_backend_requirements(backend)
    except RuntimeError as error:
        lacking.append(str(error))
        if name == XFORMERS:
            lacking.append(how_to_install(XFORMERS))
    if lacking:
        raise UserError(f"{SETTING}={name} cannot be used: {'; '.join(lacking)}")


def check_attention_route(model: nn.Module, name: str) -> None:
    """Checks that every attention of a model can be given to a backend, whatever the machine.

    Raises:
        ConfigError: There is no such backend, or some attention of the model does not take it.
    """
    _backend(name)
    _routes(model, name)


def use_attention_backend(
    model: nn.Module, name: str, *, device: torch.device, dtype: torch.dtype, masks: bool = False
) -> None:
    """Lets a backend compute all attention of a model.

    The backend first computes an attention of the model's head sizes, and its gradient, which must be right.

    Args:
        model: Changed in place, its parameters not.
        name: As diffusers names it.
        device: Where the model trains.
        dtype: Of its queries, keys and values.
        masks: Whether the model will be called with attention masks.

    Raises:
        ConfigError: There is no such backend, or some attention of the model does not take it.
        UserError: The backend cannot train on this machine, or not with such heads or masks; or diffusers did not take
            the setting over.
    """
    check_attention_backend(name, device=device, dtype=dtype)
    routes = _routes(model, name)
    if any(route.dispatched for route in routes):
        _dispatch(model, name)
    for width in sorted({_head_size(route.module) for route in routes}):
        failure = _failure(_backend(name), width, device=device, dtype=dtype, masks=masks)
        if failure is not None:
            masked = " and attention masks" if masks else ""
            raise UserError(
                f"{SETTING}={name} cannot be used: with heads of {width} channels{masked}, in {dtype} on "
                f"{device.type}, {failure}"
            )
    for route in routes:
        if not route.dispatched:
            route.take(name)
    unused = [route.name for route in routes if not route.uses(name)]
    if unused:
        raise UserError(f"{SETTING}={name}: diffusers left {unused[0]} of {type(model).__name__} as it was")


class _Route(NamedTuple):
    """How an attention module comes to its backend."""

    name: str
    module: Any
    dispatched: bool

    def take(self, backend: str) -> None:
        """Gives an attention that calls torch itself to the backend."""
        _limit_to_kernel(self.module.processor, TORCH_KERNELS.get(backend))
        if backend == XFORMERS:
            self.module.set_use_memory_efficient_attention_xformers(True)

    def uses(self, backend: str) -> bool:
        """Whether the attention is the backend's."""
        processor = self.module.processor
        if self.dispatched:
            return bool(processor._attention_backend == _backend(backend))
        if backend in TORCH_KERNELS:
            return getattr(processor, _KERNEL, None) == TORCH_KERNELS[backend]
        if backend == XFORMERS:
            return type(processor).__name__ in _XFORMERS_PROCESSORS.values()
        return _calls_torch(processor) and not hasattr(processor, _KERNEL)


def _backend(name: str) -> AttentionBackendName:
    try:
        return AttentionBackendName(name)
    except ValueError:
        known = ", ".join(backend.value for backend in AttentionBackendName)
        raise ConfigError(
            f"{SETTING}: '{name}' is no backend of diffusers'; expected null or one of: {known}"
        ) from None


def _routes(model: nn.Module, name: str) -> list[_Route]:
    modules = attention_modules(model)
    for at, module in model.named_modules():
        related = any(f"{at}.".startswith(f"{other}.") or other.startswith(f"{at}.") for other in modules)
        if type(module).__name__.endswith("Attention") and not related:
            raise ConfigError(
                f"{SETTING}={name}: {at} of {type(model).__name__} is a {type(module).__name__}, which takes no "
                "backend; set null"
            )
    if not modules:
        raise ConfigError(f"{SETTING}={name}: {type(model).__name__} has no attention that takes a backend; set null")
    routes = []
    for at, module in modules.items():
        processor: Any = module.processor
        dispatched = hasattr(processor, "_attention_backend")
        if not dispatched and name not in (offered := _offered(processor)):
            raise ConfigError(
                f"{SETTING}={name}: {at} of {type(model).__name__} does not go through diffusers' dispatcher of "
                f"attention ({type(processor).__name__}); it takes {', '.join(offered) or 'no backend'}, or null for "
                "diffusers' default"
            )
        routes.append(_Route(at, module, dispatched))
    return routes


def _offered(processor: Any) -> tuple[str, ...]:
    """Backends of a processor that does not use the dispatcher."""
    if not _calls_torch(processor):
        return ()
    xformers = (XFORMERS,) if type(processor).__name__ in _XFORMERS_PROCESSORS else ()
    return (NATIVE, *TORCH_KERNELS, *xformers)


def _calls_torch(processor: Any) -> bool:
    """Whether a processor's code calls ``scaled_dot_product_attention``."""
    if not callable(processor):
        return False
    code = getattr(inspect.unwrap(type(processor).__call__), "__code__", None)
    return code is not None and "scaled_dot_product_attention" in code.co_names


def _limit_to_kernel(processor: Any, kernel: SDPBackend | None) -> None:
    """Lets torch compute a processor's attention by one kernel alone, in recomputed blocks too; None: by any."""
    if hasattr(processor, _KERNEL):
        processor.__class__ = type(processor).__base__
    if kernel is None:
        return
    kind = type(processor)
    call = kind.__call__

    # With the signature of the original, by which diffusers chooses what to hand over.
    @functools.wraps(call)
    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(kernel):
            return call(self, *args, **kwargs)

    processor.__class__ = type(kind.__name__, (kind,), {"__call__": limited, _KERNEL: kernel})


def _dispatch(model: Any, name: str) -> None:
    with _default_backend_kept():
        try:
            model.set_attention_backend(name)
        except Exception as error:  # whatever a kernel from the Hub makes diffusers raise
            raise UserError(f"{SETTING}={name} cannot be used: {type(error).__name__}: {error}") from error


@contextmanager
def _default_backend_kept() -> Iterator[None]:
    """Leaves the backend of other models in this process as it is, which diffusers sets along with one model's."""
    registry = attention_dispatch._AttentionBackendRegistry
    before, _ = registry.get_active_backend()
    try:
        yield
    finally:
        registry.set_active_backend(before)


def _head_size(module: Any) -> int:
    return int(module.inner_dim) // int(module.heads)


def _failure(
    backend: AttentionBackendName, width: int, *, device: torch.device, dtype: torch.dtype, masks: bool
) -> str | None:
    """What is wrong with a backend's attention and its gradient, if anything is."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, _PROBE_TOKENS, 2, width)
    mask: Tensor | None = None
    if masks:  # of padding, as texts have it
        mask = torch.arange(_PROBE_TOKENS, device=device).lt(_PROBE_TOKENS // 2).expand(1, 1, _PROBE_TOKENS, -1)
    inputs = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4)]
    expected = _attention_and_gradients(AttentionBackendName._NATIVE_MATH, [x.float() for x in inputs], mask)
    try:
        with warnings.catch_warnings(record=True) as reasons:
            warnings.simplefilter("always")
            results = _attention_and_gradients(backend, inputs, mask)
    except Exception as error:  # whatever a kernel says to what it cannot compute
        # torch says why it takes none of its kernels in warnings.
        said = dict.fromkeys(" ".join(str(reason.message).split()) for reason in reasons)
        return " ".join([f"it fails: {type(error).__name__}: {error}", *said])
    if results[1] is None:
        return "it computes no gradient"
    for what, result, right in zip(("output", "gradient", "gradient", "gradient"), results, expected, strict=True):
        assert result is not None
        assert right is not None
        off = float((result.float() - right).norm() / right.norm())
        if not off < _PROBE_TOLERANCE:
            return f"its {what} is off by {off:.1%}"
    return None


def _attention_and_gradients(
    backend: AttentionBackendName, inputs: list[Tensor], mask: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, weight = inputs
    query, key, value = (x.detach().requires_grad_() for x in tensors)
    with torch.enable_grad():
        output: Tensor = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=backend)
        if not output.requires_grad:
            return output, None, None, None
        (output * weight).sum().backward()  # type: ignore[no-untyped-call]
    return output.detach(), query.grad, key.grad, value.grad
