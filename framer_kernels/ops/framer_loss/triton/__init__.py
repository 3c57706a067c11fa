"""The FRAMER loss on Triton: radial bands, complex representation, maps of up to 64 x 64."""

from framer_kernels.ops.framer_loss.triton.launchers import (
    PRECISIONS,
    add_cross_gradients,
    cross_products,
    gradients,
    measure,
    supports,
)

__all__ = ["PRECISIONS", "add_cross_gradients", "cross_products", "gradients", "measure", "supports"]
