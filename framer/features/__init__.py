"""Feature maps of diffusion models: captured at every block, and seen in a feature space."""

from __future__ import annotations

from framer.features.adapters import Adapter, adapter_for, register_adapter
from framer.features.errors import CaptureError, FeatureError, UnsupportedModelError
from framer.features.spaces import FeatureSpace, feature_maps
from framer.features.taps import BlockTap, Capture

__all__ = [
    "Adapter",
    "BlockTap",
    "Capture",
    "CaptureError",
    "FeatureError",
    "FeatureSpace",
    "UnsupportedModelError",
    "adapter_for",
    "feature_maps",
    "register_adapter",
]
