"""Band energy as an operator without a gradient, known to `torch.library`."""

from __future__ import annotations

import torch
from torch import Tensor

from framer_kernels.backends import choose_backend, load_backend
from framer_kernels.bands import BandSplit
from framer_kernels.ops.tags import OPERATOR_TAGS
from framer_kernels.precision import compute_dtype, exact_arithmetic


@torch.library.custom_op("framer_kernels::band_energy", mutates_args=(), tags=OPERATOR_TAGS)
def band_energy(x: Tensor, teacher: Tensor, bands: str, band_value: float, backend: str, precision: str) -> Tensor:
    """Energies ``[2, B]``, LF then HF.

    Args:
        x: ``[B, C, H, W]``.
        teacher: Like ``x``; quantile bands are taken from it.
        bands: Kind of the `BandSplit`.
        band_value: Its value.
        backend: ``auto``, ``triton`` or ``portable``.
        precision: As in `framer_kernels.framer_loss`.

    Raises:
        ValueError: Triton was asked for and cannot compute this.
    """
    name = choose_backend(backend, x)
    with exact_arithmetic(x.device):
        products = load_backend(name).measure(
            [x],
            teacher,
            negatives=[0],  # with itself: kernels take one layer at least
            bands=BandSplit(bands, band_value),  # type: ignore[arg-type]
            representation="complex",
            shared_negatives=False,
            precision=precision,
        )
    return products.energy[:, 0].clone()


@band_energy.register_fake
def _(x: Tensor, teacher: Tensor, bands: str, band_value: float, backend: str, precision: str) -> Tensor:
    return x.new_empty(2, x.shape[0], dtype=compute_dtype(x.dtype))
