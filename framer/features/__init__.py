"""Feature maps of diffusion models: captured at every layer, and seen in a feature space."""

from __future__ import annotations

from framer.features.adapters import Adapter, TransformerAdapter, adapter_for, register_adapter, register_layout
from framer.features.adapters.grids import patchified
from framer.features.adapters.layouts import Head, Stack, TokenGrid, TransformerLayout
from framer.features.errors import CaptureError, FeatureError, UnsupportedModelError
from framer.features.spaces import FeatureSpace, feature_space
from framer.features.taps import Capture, FeatureTap

__all__ = [
    "Adapter",
    "Capture",
    "CaptureError",
    "FeatureError",
    "FeatureSpace",
    "FeatureTap",
    "Head",
    "Stack",
    "TokenGrid",
    "TransformerAdapter",
    "TransformerLayout",
    "UnsupportedModelError",
    "adapter_for",
    "feature_space",
    "patchified",
    "register_adapter",
    "register_layout",
]
