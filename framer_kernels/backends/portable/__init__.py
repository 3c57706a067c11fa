"""Band products and gradients in plain torch, on any device: chunk by chunk, each map read once a pass.

A chunk of channels of all samples is transformed by two matrix products with the packed real DFT into ``[H, W, n]``,
n = B times the chunk's channels, so that every step after it works on long contiguous rows. The few buffers of a chunk
are used again for every chunk and map and stay in the processor's cache; no spectrum of a whole map exists.
"""

from framer_kernels.backends.portable.passes import add_cross_gradients, cross_products, gradients, measure

__all__ = ["add_cross_gradients", "cross_products", "gradients", "measure"]
