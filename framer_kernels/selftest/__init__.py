"""``python -m framer_kernels.selftest``: whether every backend is right on this machine, and how fast it is."""
