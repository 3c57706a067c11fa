"""SD3 and SD3.5 with the low-resolution stream: our ``SD3ControlStreamTransformer2DModel``."""

from __future__ import annotations

from framer.features.adapters.sd3 import SD3Adapter


class SD3ControlStreamAdapter(SD3Adapter):
    """Blocks that return ``(text tokens, noisy tokens, low-resolution tokens)``; the noisy ones are the image's."""

    block_arguments = ("hidden_states", "encoder_hidden_states", "temb", "condition_hidden_states", "grid")
