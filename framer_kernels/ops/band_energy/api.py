"""Public function `band_energy`."""

from __future__ import annotations

from torch import Tensor

from framer_kernels import reference, validation
from framer_kernels.bands import DEFAULT_BANDS, BandSplit
from framer_kernels.ops.band_energy import autograd
from framer_kernels.precision import DEFAULT_PRECISION, autocast_disabled
from framer_kernels.types import Backend, BandPair, Precision


def band_energy(
    x: Tensor,
    *,
    bands: BandSplit = DEFAULT_BANDS,
    teacher: Tensor | None = None,
    backend: Backend = "auto",
    precision: Precision = DEFAULT_PRECISION,
) -> BandPair:
    """Mean spectral magnitude of a feature map in the low and the high band.

    ``E_b(x) = mean over channels of ( sum_{h,w} |F(x)| M_b / (sum_{h,w} M_b + 1e-9) )``, with ``F`` the
    unnormalised 2-D DFT of each channel and ``M_b`` the mask of the band.

    Args:
        x: ``[B, C, H, W]``, floating, any strides.
        bands: The division of the spectrum.
        teacher: ``[B, C, H, W]``, what ``quantile`` bands are taken from; ``radial`` bands need none.
        backend: ``auto`` (Triton on CUDA and ROCm, else portable), ``triton``, ``portable`` or ``reference``.
        precision: How Triton multiplies matrices, see ``docs/kernels.md``; the other backends are exact.

    Returns:
        ``lf`` and ``hf``, each ``[B]``, float64 for float64 features and float32 for others. No gradient.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, dtype or device does not match, or a name is not among the allowed ones.
    """
    validation.check_map("x", x)
    if teacher is not None:
        validation.check_like("teacher", teacher, "x", x)
    validation.check_bands(bands, has_teacher=teacher is not None)
    validation.check_backend(backend)
    validation.check_precision(precision)
    if backend != "reference":
        mask_source = x if teacher is None else teacher
        energies = autograd.band_energy(
            x.detach(), mask_source.detach(), bands.kind, float(bands.value), backend, precision
        )
        return BandPair(*energies.unbind())
    with autocast_disabled(x.device):
        return reference.band_energy(x, teacher, bands=bands)
