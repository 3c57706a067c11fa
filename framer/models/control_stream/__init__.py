"""DiT4SR's control stream (arXiv 2503.23580): the low-resolution latent as a second image stream of SD3 and SD3.5."""

from __future__ import annotations

from framer.models.control_stream.attention import Variant
from framer.models.control_stream.base import from_sd3
from framer.models.control_stream.parameters import control_parameter_names
from framer.models.control_stream.published import PUBLISHED_NAMES, load_dit4sr
from framer.models.control_stream.transformer import SD3ControlStreamTransformer2DModel

__all__ = [
    "PUBLISHED_NAMES",
    "SD3ControlStreamTransformer2DModel",
    "Variant",
    "control_parameter_names",
    "from_sd3",
    "load_dit4sr",
]
