"""Feature maps of diffusion models: captured at every layer, and seen in a feature space."""

from __future__ import annotations

from framer.features.adapters import (
    Adapter,
    TransformerAdapter,
    UNetAdapter,
    adapter_for,
    register_adapter,
    register_layout,
)
from framer.features.adapters.grids import patchified
from framer.features.adapters.layouts import Head, Stack, TokenGrid, TransformerLayout
from framer.features.attachment import attach_heads, detach_heads, heads_set_aside
from framer.features.errors import CaptureError, FeatureError, MissingHeadsError, UnsupportedModelError
from framer.features.heads import FeatureHeads, without_heads
from framer.features.spaces import FeatureSpace, feature_space
from framer.features.taps import Capture, FeatureTap

__all__ = [
    "Adapter",
    "Capture",
    "CaptureError",
    "FeatureError",
    "FeatureHeads",
    "FeatureSpace",
    "FeatureTap",
    "Head",
    "MissingHeadsError",
    "Stack",
    "TokenGrid",
    "TransformerAdapter",
    "TransformerLayout",
    "UNetAdapter",
    "UnsupportedModelError",
    "adapter_for",
    "attach_heads",
    "detach_heads",
    "feature_space",
    "heads_set_aside",
    "patchified",
    "register_adapter",
    "register_layout",
    "without_heads",
]
