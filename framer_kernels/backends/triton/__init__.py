"""The band products and gradients on Triton: radial bands, complex representation, maps of up to 64 x 64."""

from framer_kernels.backends.triton.launchers import (
    add_cross_gradients,
    cross_products,
    gradients,
    measure,
    supports,
)
from framer_kernels.backends.triton.objective import loss_and_coefficients

__all__ = [
    "add_cross_gradients",
    "cross_products",
    "gradients",
    "loss_and_coefficients",
    "measure",
    "supports",
]
