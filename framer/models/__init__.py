"""Building the transformer, conditioning it on the low-resolution image, and the space it diffuses in."""
