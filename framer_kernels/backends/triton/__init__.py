"""The band products and gradients on Triton: all bands and representations, maps of up to 64 x 64."""

from framer_kernels.backends.triton.dispatch import add_cross_gradients, cross_products, gradients, measure
from framer_kernels.backends.triton.limits import supports
from framer_kernels.backends.triton.objective import loss_and_coefficients

__all__ = [
    "add_cross_gradients",
    "cross_products",
    "gradients",
    "loss_and_coefficients",
    "measure",
    "supports",
]
