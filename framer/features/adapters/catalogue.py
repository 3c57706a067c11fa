"""The classes of transformers that are known."""

from __future__ import annotations

from typing import Final

from framer.features.adapters.grids import patchified
from framer.features.adapters.layouts import Head, Stack, TransformerLayout

# By name: importing every diffusers model to compare classes would cost seconds at start.
LAYOUTS: Final[dict[str, TransformerLayout]] = {
    # Blocks return (text tokens, image tokens).
    "SD3Transformer2DModel": TransformerLayout((Stack("transformer_blocks", output=1),), patchified(), Head()),
}
