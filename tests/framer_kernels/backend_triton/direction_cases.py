"""Maps with no high band, and with a small one, in each precision of Triton's interpreter.

Prints one line of JSON for every case: its name and what was found.
"""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import interpreter  # noqa: F401  (mends the interpreter)
import torch
from torch import Tensor

from framer_kernels import BandSplit, band_similarity, framer_loss, inter_contrastive_loss

# A side with many small factors and one with few; of such sizes rounding leaves most.
SHAPES = [(2, 3, 10, 20), (2, 2, 7, 9)]
BANDS = BandSplit.radial(0.25)


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_high_band(shape: tuple[int, ...], ratio: float) -> Tensor:
    """A map whose high band has ``ratio`` times the norm of its low one."""
    spectrum = torch.fft.fft2(noise(shape, 0))
    mask = BANDS.radial_mask(*shape[-2:], torch.device("cpu"))
    low, high = (torch.fft.ifft2(spectrum * m).real for m in (mask, ~mask))
    norms = [x.flatten(1).norm(dim=1)[:, None, None, None] for x in (low, high)]
    return low / norms[0] + ratio * high / norms[1]


def high_band(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, **settings: Any) -> tuple[list[Tensor], Tensor]:
    """Gradients of the high band's operations, and what FAM sees of it."""
    teacher, other = (noise(shape, seed).to(dtype) for seed in (1, 2))
    x = x.to(dtype).requires_grad_()
    inter = inter_contrastive_loss(x, teacher, other, bands=BANDS, **settings)
    similarity = band_similarity(x, teacher, bands=BANDS, **settings)
    gradients = [torch.autograd.grad(value.sum(), x)[0] for value in (inter, similarity.hf)]
    out = framer_loss([x, other], teacher, negatives=[1, 0], bands=BANDS, **settings)
    return gradients, out.align_hf[0]


def main() -> None:
    for precision, ratio in (("ieee", 1e-3), ("bf16x3", 1e-3), ("tf32", 2e-2)):
        settings = {"backend": "triton", "precision": precision}
        largest, error = 0.0, 0.0
        for shape in SHAPES:
            for constant in (100.0, 3.1):
                gradients, align = high_band(torch.full(shape, constant), shape, torch.float32, **settings)
                largest = max(largest, *(float(x.abs().max()) for x in (*gradients, align)))
            x = with_high_band(shape, ratio).float()
            found, _ = high_band(x, shape, torch.float32, **settings)
            exact, _ = high_band(x, shape, torch.float64, backend="reference")
            for a, b in zip(found, exact, strict=True):
                error = max(error, float((a.double() - b).norm() / b.norm()))
        print(json.dumps([precision, {"constant": largest, "small": error}]))


if __name__ == "__main__":
    main()
