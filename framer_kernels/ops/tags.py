"""What torch must know of the operators beside their schemas."""

import torch

OPERATOR_TAGS: tuple[torch.Tag, ...] = (
    (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()  # torch before 2.9
)
"""Triton's launches read addresses of the maps from memory that a CUDA graph would read again when it is stale."""
