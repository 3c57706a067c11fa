"""Public function `band_similarity`."""

from __future__ import annotations

from torch import Tensor

from framer_kernels import reference, validation
from framer_kernels.bands import DEFAULT_BANDS, BandSplit
from framer_kernels.ops.similarity import autograd
from framer_kernels.precision import DEFAULT_PRECISION, autocast_disabled
from framer_kernels.types import Backend, BandPair, Precision, Representation


def band_similarity(
    x: Tensor,
    y: Tensor,
    *,
    bands: BandSplit = DEFAULT_BANDS,
    representation: Representation = "complex",
    teacher: Tensor | None = None,
    backend: Backend = "auto",
    precision: Precision = DEFAULT_PRECISION,
) -> BandPair:
    """Cosine similarity of two feature maps in the low and the high band, sample by sample.

    ``cos_b(x, y) = <u_b(x), u_b(y)> / (max(|u_b(x)|, 1e-12) * max(|u_b(y)|, 1e-12))``, where ``u_b`` is the
    masked spectrum of a sample as one real vector: ``F * M_b`` for ``complex``, ``|F| * M_b`` for
    ``magnitude``. Unrelated white noise scores 0 with ``complex`` and pi/4 with ``magnitude``.

    Args:
        x: ``[B, C, H, W]``, floating, any strides. The gradient flows here.
        y: As ``x``, with its shape, dtype and device. Gets no gradient.
        bands: The division of the spectrum.
        representation: ``complex`` or ``magnitude``.
        teacher: ``[B, C, H, W]``, what ``quantile`` bands are taken from; ``radial`` bands need none.
        backend: ``auto`` (Triton on CUDA and ROCm, else portable), ``triton``, ``portable`` or ``reference``.
        precision: How Triton multiplies matrices, see ``docs/kernels.md``; the other backends are exact.

    Returns:
        ``lf`` and ``hf``, each ``[B]`` in [-1, 1], float64 for float64 features and float32 for others. Where
        a band of ``x`` is zero (norm at most 1e-12, or rounding error of the whole map's), so are similarity and
        gradient.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, dtype or device does not match, or a name is not among the allowed ones.
    """
    validation.check_map("x", x)
    validation.check_like("y", y, "x", x)
    if teacher is not None:
        validation.check_like("teacher", teacher, "x", x)
    validation.check_bands(bands, has_teacher=teacher is not None)
    validation.check_representation(representation)
    validation.check_backend(backend)
    validation.check_precision(precision)
    if backend != "reference":
        mask_source = y if teacher is None else teacher
        cosines, _ = autograd.band_similarity(
            x,
            y.detach(),
            mask_source.detach(),
            bands.kind,
            float(bands.value),
            representation,
            backend,
            precision,
        )
        return BandPair(*cosines.unbind())
    with autocast_disabled(x.device):
        return reference.band_similarity(x, y, teacher, bands=bands, representation=representation)
