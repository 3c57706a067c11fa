from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_processor import XFormersJointAttnProcessor
from sd3 import model_inputs
from tiny_models import tiny_unet, unet_output
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from framer.config.model import ModelConfig
from framer.errors import ConfigError, UserError
from framer.models import attention_backends
from framer.models.attention import attention_modules
from framer.models.attention_backends import check_attention_backend, check_attention_route, use_attention_backend
from framer.models.build import build_model

CPU, FP32 = torch.device("cpu"), torch.float32
RUN_ON_CPUS = ("native", "_native_math", "_native_flash")


def _sd3() -> Any:
    architecture = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "dual_attention_layers": [0]}
    model = build_model(ModelConfig(architecture=architecture), seed=0)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def _run_sd3(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 3, 16, 16, generator=generator)
    condition = torch.randn(2, model.config.in_channels - 3, 16, 16, generator=generator)
    output: Tensor = model(**model_inputs(model, sample, condition, torch.tensor([200.0, 700.0]))).sample
    return output


def _flux() -> Any:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )


def _run_flux(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    output: Tensor = model(
        hidden_states=torch.randn(1, 16, 4, generator=generator).to(model.dtype),
        encoder_hidden_states=torch.randn(1, 3, 8, generator=generator).to(model.dtype),
        pooled_projections=torch.randn(1, 8, generator=generator).to(model.dtype),
        timestep=torch.tensor([0.5]),
        img_ids=torch.zeros(16, 3),
        txt_ids=torch.zeros(3, 3),
    ).sample
    return output


def _qwen() -> Any:
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(2, 2, 4),
    )


def _run_qwen(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    output: Tensor = model(
        hidden_states=torch.randn(1, 16, 4, generator=generator),
        encoder_hidden_states=torch.randn(1, 3, 8, generator=generator),
        encoder_hidden_states_mask=None,
        timestep=torch.tensor([0.5]),
        img_shapes=[(1, 4, 4)],
    ).sample
    return output


Model = tuple[Callable[[], Any], Callable[[Any], Tensor]]
MODELS: dict[str, Model] = {
    "sd3": (_sd3, _run_sd3),
    "unet": (tiny_unet, unet_output),
    "flux": (_flux, _run_flux),
    "qwen": (_qwen, _run_qwen),
}


class _Kernels(TorchDispatchMode):
    """Counts the attentions that run on torch's fused operator."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fused += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return func(*args, **(kwargs or {}))


def _outputs_and_gradients(model: Any, run: Callable[[Any], Tensor]) -> tuple[Tensor, dict[str, Tensor], int]:
    model.zero_grad()
    with _Kernels() as kernels:
        output = run(model)
    output.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), gradients, kernels.fused


@pytest.mark.parametrize("backend", RUN_ON_CPUS)
@pytest.mark.parametrize("kind", MODELS)
def test_what_runs_on_cpus_computes_the_same_with_the_kernel_asked_for(kind: str, backend: str) -> None:
    build, run = MODELS[kind]
    model = build()
    output, gradients, _ = _outputs_and_gradients(model, run)
    use_attention_backend(model, backend, device=CPU, dtype=FP32)
    other, others, fused = _outputs_and_gradients(model, run)
    assert fused == (0 if backend == "_native_math" else len(attention_modules(model)))
    assert (other - output).abs().max() < 1e-5
    assert others.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert all((others[name] - gradients[name]).abs().max() < 1e-5 * largest for name in gradients)


def test_recomputed_blocks_use_the_backend_too() -> None:
    model = _sd3()
    use_attention_backend(model, "_native_math", device=CPU, dtype=FP32)
    model.enable_gradient_checkpointing(
        gradient_checkpointing_func=lambda b, *a: checkpoint(b, *a, use_reentrant=False)
    )
    with _Kernels() as kernels:
        _run_sd3(model).square().sum().backward()
    assert kernels.fused == 0
    assert all(parameter.grad is not None for parameter in model.transformer_blocks[1].attn.to_q.parameters())


def test_a_kernel_for_one_model_leaves_others_as_they_are() -> None:
    before = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    first, second = _flux(), _flux()
    use_attention_backend(first, "_native_math", device=CPU, dtype=FP32)
    assert attention_dispatch._AttentionBackendRegistry.get_active_backend() == before
    assert _outputs_and_gradients(second, _run_flux)[2] == 2
    one, other = _sd3(), _sd3()
    use_attention_backend(one, "_native_math", device=CPU, dtype=FP32)
    assert _outputs_and_gradients(other, _run_sd3)[2] == len(attention_modules(other))


def test_the_last_kernel_asked_for_counts() -> None:
    model = _sd3()
    for backend, fused in (("_native_math", 0), ("_native_flash", 4), ("_native_math", 0), ("native", 4)):
        use_attention_backend(model, backend, device=CPU, dtype=FP32)
        assert _outputs_and_gradients(model, _run_sd3)[2] == fused, backend


def test_the_random_state_stays() -> None:
    state, model = torch.get_rng_state(), _sd3()
    use_attention_backend(model, "native", device=CPU, dtype=FP32)
    assert torch.equal(torch.get_rng_state(), state)


REFUSED = [backend.value for backend in AttentionBackendName if backend.value not in RUN_ON_CPUS]
INSTALLED = {
    "flash": "flash-attn>=2.6.3",
    "_flash": "FA3 beta release",
    "sage": "sageattention>=2.1.1",
    "_sage": "sageattention>=2.1.1",
    "xformers": "pip install -c constraints.txt -e '.[xformers]'",
    "_native_npu": "torch_npu",
    "_native_xla": "torch_xla",
}


@pytest.mark.parametrize("backend", REFUSED)
@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_every_other_backend_says_what_is_missing(kind: str, backend: str) -> None:
    build, _ = MODELS[kind]
    model = build()
    with pytest.raises(UserError) as caught:
        use_attention_backend(model, backend, device=CPU, dtype=FP32)
    message = str(caught.value)
    assert message.startswith(f"model.attention_backend={backend} cannot be used: ")
    if backend == "flex":
        assert "FlexAttention does not support backward on CPU" in message
        return
    device = {"_native_npu": "npu", "_native_xla": "xla"}.get(backend, "cuda")
    assert f"it needs a device of type {device}, and the model trains on cpu" in message
    if backend.endswith("_hub"):
        assert "pip install kernels" in message
    else:
        wanted = next((text for start, text in INSTALLED.items() if backend.startswith(start)), "")
        assert wanted in message
    assert ("set training.precision" in message) == backend.startswith(("flash", "_flash", "aiter", "_native_cudnn"))
    assert ("no gradients" in message) == backend.startswith(("sage", "_sage"))


@pytest.mark.parametrize("kind", ["sd3", "unet"])
@pytest.mark.parametrize("backend", ["flex", "flash", "_flash_3", "sage", "flash_hub"])
def test_models_that_do_not_use_the_dispatcher_say_what_they_take(kind: str, backend: str) -> None:
    model = MODELS[kind][0]()
    expected = r"does not go through diffusers' dispatcher .*it takes native, _native_math, .*, xformers, or null"
    with pytest.raises(ConfigError, match=expected):
        check_attention_route(model, backend)


def test_an_unknown_name_and_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="'flash2' is no backend of diffusers'; expected null or one of: flash, "):
        check_attention_backend("flash2", device=CPU, dtype=FP32)


def test_masks_are_refused_where_the_kernel_has_none() -> None:
    use_attention_backend(_qwen(), "_native_math", device=CPU, dtype=FP32, masks=True)
    with pytest.raises(UserError, match=r"heads of 8 channels and attention masks.*`attn_mask` is not supported"):
        use_attention_backend(_qwen(), "_native_flash", device=CPU, dtype=FP32, masks=True)


def test_half_precision() -> None:
    model = _flux().to(torch.bfloat16)
    outputs = {}
    for backend, fused in (("_native_math", 0), ("_native_flash", 2)):
        use_attention_backend(model, backend, device=CPU, dtype=torch.bfloat16)
        outputs[backend], gradients, kernels = _outputs_and_gradients(model, _run_flux)
        assert kernels == fused, backend
        assert {gradient.dtype for gradient in gradients.values()} == {torch.bfloat16}
    math, flash = outputs.values()
    assert (flash - math).abs().max() < 0.02 * math.abs().max()


class _OwnAttention(nn.Module):
    """Computes attention by itself, where no setting of diffusers' reaches."""


def test_attention_that_takes_no_backend_is_not_overlooked() -> None:
    model = _sd3()
    model.extra = nn.ModuleList([_OwnAttention()])
    with pytest.raises(
        ConfigError, match=r"extra\.0 of SD3Transformer2DModel is a _OwnAttention, which takes no backend"
    ):
        use_attention_backend(model, "native", device=CPU, dtype=FP32)
    with pytest.raises(ConfigError, match="Sequential has no attention that takes a backend"):
        use_attention_backend(nn.Sequential(nn.Linear(2, 2)), "native", device=CPU, dtype=FP32)


def test_a_processor_that_computes_attention_by_hand_takes_none() -> None:
    class ByHand:
        def __call__(self, attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
            return hidden_states

    model = tiny_unet()
    next(iter(attention_modules(model).values())).set_processor(ByHand())  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"\(ByHand\); it takes no backend, or null"):
        use_attention_backend(model, "native", device=CPU, dtype=FP32)


def test_a_setting_that_diffusers_did_not_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _flux()
    monkeypatch.setattr(type(model), "set_attention_backend", lambda self, name: None)
    with pytest.raises(
        UserError, match=r"diffusers left transformer_blocks\.0\.attn of FluxTransformer2DModel as it was"
    ):
        use_attention_backend(model, "_native_math", device=CPU, dtype=FP32)


def test_what_diffusers_raises_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: Any, name: str) -> None:
        raise ConnectionError("the Hub cannot be reached")

    model = _flux()
    monkeypatch.setattr(type(model), "set_attention_backend", offline)
    with pytest.raises(UserError, match="cannot be used: ConnectionError: the Hub cannot be reached"):
        use_attention_backend(model, "native", device=CPU, dtype=FP32)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda query, key, value, **_: query.detach(), "it computes no gradient"),
        (lambda query, key, value, **_: query + key + value, "its output is off by"),
        (lambda query, key, value, **_: torch.full_like(query, torch.nan) * query, "its output is off by nan"),
    ],
)
def test_a_backend_that_computes_wrongly(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Tensor], named: str
) -> None:
    registry = attention_dispatch._AttentionBackendRegistry
    monkeypatch.setitem(registry._backends, AttentionBackendName.FLEX, function)
    monkeypatch.setitem(registry._supported_arg_names, AttentionBackendName.FLEX, {"query", "key", "value"})
    with pytest.raises(UserError, match=f"heads of 8 channels, in torch.float32 on cpu, {named}"):
        use_attention_backend(_flux(), "flex", device=CPU, dtype=FP32)


def test_xformers_takes_the_processors_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the library and its GPU: what is tested is that every attention of SD3 is switched."""
    monkeypatch.setattr(attention_backends, "check_attention_backend", lambda name, **_: None)
    monkeypatch.setattr(attention_backends, "_failure", lambda *_, **__: None)
    model = _sd3()
    for module in attention_modules(model).values():
        monkeypatch.setattr(
            module,
            "set_use_memory_efficient_attention_xformers",
            lambda on, at=module: at.set_processor(XFormersJointAttnProcessor()),
        )
    use_attention_backend(model, "xformers", device=CPU, dtype=FP32)
    assert {type(module.processor) for module in attention_modules(model).values()} == {XFormersJointAttnProcessor}


@pytest.mark.parametrize(("name", "kernel"), attention_backends.TORCH_KERNELS.items())
def test_torchs_kernels_have_diffusers_names(name: str, kernel: SDPBackend) -> None:
    assert AttentionBackendName(name).value == name
    assert isinstance(kernel, SDPBackend)
