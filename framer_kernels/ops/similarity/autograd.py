"""Band similarity as an operator with a gradient, known to `torch.library`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from framer_kernels.backends import choose_backend, load_backend
from framer_kernels.bands import BandSplit
from framer_kernels.objective import has_direction
from framer_kernels.ops.tags import OPERATOR_TAGS
from framer_kernels.precision import NORM_FLOOR, compute_dtype, exact_arithmetic, rounding
from framer_kernels.products import GradientCoefficients


@torch.library.custom_op("framer_kernels::band_similarity", mutates_args=(), tags=OPERATOR_TAGS)
def band_similarity(
    x: Tensor,
    y: Tensor,
    teacher: Tensor,
    bands: str,
    band_value: float,
    representation: str,
    backend: str,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Cosines ``[2, B]``, LF then HF, and gradient coefficients ``[4, B]``.

    Args:
        x: ``[B, C, H, W]``.
        y: Like ``x``.
        teacher: Like ``x``; quantile bands are taken from it.
        bands: Kind of the `BandSplit`.
        band_value: Its value.
        representation: As in `framer_kernels.band_similarity`.
        backend: ``auto``, ``triton`` or ``portable``.
        precision: As in `framer_kernels.framer_loss`.

    Raises:
        ValueError: Triton was asked for and cannot compute this.
    """
    name = choose_backend(backend, x)
    with exact_arithmetic(x.device):
        products = load_backend(name).measure(
            [x, y],
            teacher,
            negatives=[1],
            bands=BandSplit(bands, band_value),  # type: ignore[arg-type]
            representation=representation,  # type: ignore[arg-type]
            shared_negatives=False,
            precision=precision,
        )
    norms = products.norm_squared.sqrt()
    x_norm, y_norm = norms.clamp_min(NORM_FLOOR).unbind(dim=1)
    cosine = torch.stack([products.negative_dot_lf[0], products.negative_dot_hf[0, :, 0]]) / (x_norm * y_norm)
    live = has_direction(products.norm_squared[:, 0], rounding(x.dtype, name, precision)).to(cosine.dtype)
    cosine = cosine * live
    return cosine, torch.cat([live / (x_norm * y_norm), -live * cosine / x_norm.square()])


@band_similarity.register_fake
def _(
    x: Tensor,
    y: Tensor,
    teacher: Tensor,
    bands: str,
    band_value: float,
    representation: str,
    backend: str,
    precision: str,
) -> tuple[Tensor, Tensor]:
    like = x.new_empty(0, dtype=compute_dtype(x.dtype))
    return like.new_empty(2, x.shape[0]), like.new_empty(4, x.shape[0])


@torch.library.custom_op("framer_kernels::band_similarity_backward", mutates_args=(), tags=OPERATOR_TAGS)
def band_similarity_backward(
    upstream: Tensor,
    x: Tensor,
    y: Tensor,
    teacher: Tensor,
    packed: Tensor,
    bands: str,
    band_value: float,
    representation: str,
    backend: str,
    precision: str,
) -> Tensor:
    """Gradient of ``x``.

    Args:
        upstream: Gradient of the cosines, ``[2, B]``, any strides.
        x: As in `band_similarity`.
        y: As in `band_similarity`.
        teacher: As in `band_similarity`.
        packed: The gradient coefficients.
        bands: As in `band_similarity`.
        band_value: As in `band_similarity`.
        representation: As in `band_similarity`.
        backend: As in `band_similarity`.
        precision: As in `band_similarity`.
    """
    to_y, to_x = (packed.view(2, 2, -1) * upstream).unbind()
    nothing = torch.zeros_like(to_y[:1])
    name = choose_backend(backend, x)
    with exact_arithmetic(x.device):
        (gradient,) = load_backend(name).gradients(
            [x, y],
            teacher,
            GradientCoefficients(
                teacher_lf=nothing,
                negative_lf=to_y[:1],
                self_lf=to_x[:1],
                self_hf=to_x[1:],
                teacher_hf=to_y.new_empty(1, len(x), 0),
                negative_hf=to_y[1:, :, None],
            ),
            torch.ones_like(nothing),
            negatives=[1],
            bands=BandSplit(bands, band_value),  # type: ignore[arg-type]
            representation=representation,  # type: ignore[arg-type]
            shared_negatives=False,
            needed=[True],
            precision=precision,
        )
    if gradient is None:
        raise RuntimeError("the backend returned no gradient where one was asked for")
    return gradient


@band_similarity_backward.register_fake
def _(
    upstream: Tensor,
    x: Tensor,
    y: Tensor,
    teacher: Tensor,
    packed: Tensor,
    bands: str,
    band_value: float,
    representation: str,
    backend: str,
    precision: str,
) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, y, teacher, *settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, y, teacher, output[1])
    ctx.settings = settings


def _differentiate(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Any, ...]:
    if upstream is None:
        return (None,) * 8
    return band_similarity_backward(upstream, *ctx.saved_tensors, *ctx.settings), *([None] * 7)


band_similarity.register_autograd(_differentiate, setup_context=_keep)
