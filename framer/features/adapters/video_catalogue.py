"""The classes of video transformers that are known: the tokens of each latent frame are one feature map."""

from __future__ import annotations

from typing import Final

from framer.features.adapters import video_grids, video_tokens
from framer.features.adapters.layouts import Stack, TransformerLayout
from framer.features.adapters.video_grids import named_sizes, video_patches

_FRAMES_BEFORE_CHANNELS = video_patches(frames=-4)
_CHANNELS_LAST = video_patches(-4, -3, -2)

_WAN = TransformerLayout((Stack("blocks"),), video_patches())
_DUAL_THEN_SINGLE = (Stack("transformer_blocks", output=0), Stack("single_transformer_blocks", output=0))

# No heads: the feature spaces that need one are for images.
VIDEO_LAYOUTS: Final[dict[str, TransformerLayout]] = {
    "AllegroTransformer3DModel": TransformerLayout((Stack("transformer_blocks"),), video_patches()),
    "AnyFlowTransformer3DModel": TransformerLayout((Stack("blocks"),), _FRAMES_BEFORE_CHANNELS),
    "AnyFlowFARTransformer3DModel": TransformerLayout(
        (Stack("blocks", tokens=video_tokens.uncompressed_of_anyflow),), video_grids.full_frames_of_anyflow
    ),
    "ChronoEditTransformer3DModel": _WAN,
    "CogVideoXTransformer3DModel": TransformerLayout((Stack("transformer_blocks", output=0),), _FRAMES_BEFORE_CHANNELS),
    "ConsisIDTransformer3DModel": TransformerLayout((Stack("transformer_blocks", output=0),), _FRAMES_BEFORE_CHANNELS),
    "CosmosTransformer3DModel": TransformerLayout((Stack("transformer_blocks"),), video_patches()),
    # Layers return (text, what is generated: video, then sound or actions), without a batch dimension.
    "Cosmos3OmniTransformer": TransformerLayout(
        (Stack("layers", output=1, tokens=video_tokens.vision_of_cosmos_3),), video_grids.one_vision_item
    ),
    "EasyAnimateTransformer3DModel": TransformerLayout((Stack("transformer_blocks", output=0),), video_patches()),
    # Earlier frames, in patches that grow with their age, come before the generated ones.
    "HeliosTransformer3DModel": TransformerLayout((Stack("blocks", tokens="last"),), video_patches()),
    "HunyuanVideoTransformer3DModel": TransformerLayout(_DUAL_THEN_SINGLE, video_patches()),
    "HunyuanVideo15Transformer3DModel": TransformerLayout((Stack("transformer_blocks", output=0),), video_patches()),
    "HunyuanVideoFramepackTransformer3DModel": TransformerLayout(
        (
            Stack("transformer_blocks", output=0, tokens="last"),
            Stack("single_transformer_blocks", output=0, tokens="last"),
        ),
        video_patches(),
    ),
    "Kandinsky5Transformer3DModel": TransformerLayout(
        (Stack("visual_transformer_blocks", tokens=video_tokens.of_kandinsky_5),), _CHANNELS_LAST
    ),
    # Blocks return (video, audio).
    "Kandinsky6Transformer3DModel": TransformerLayout((Stack("visual_transformer_blocks", output=0),), _CHANNELS_LAST),
    "Kandinsky6SRTransformer3DModel": TransformerLayout(
        (Stack("visual_transformer_blocks", tokens=video_tokens.in_square_blocks),), _CHANNELS_LAST
    ),
    # A layer is a pair of blocks, one within frames and one along time; the second returns what both have made.
    "LatteTransformer3DModel": TransformerLayout(
        (Stack("temporal_transformer_blocks", tokens=video_tokens.of_temporal_block),), video_patches()
    ),
    "LTXVideoTransformer3DModel": TransformerLayout((Stack("transformer_blocks"),), named_sizes(in_patches=True)),
    # Blocks return (video, audio).
    "LTX2VideoTransformer3DModel": TransformerLayout(
        (Stack("transformer_blocks", output=0),), named_sizes(in_patches=False)
    ),
    "MiniMaxH3Transformer3DModel": TransformerLayout(
        (Stack("transformer_blocks", tokens=video_tokens.generated_by_minimax),), video_grids.minimax_positions
    ),
    "MochiTransformer3DModel": TransformerLayout((Stack("transformer_blocks", output=0),), video_patches()),
    "MotifVideoTransformer3DModel": TransformerLayout(_DUAL_THEN_SINGLE, video_patches()),
    "SanaVideoTransformer3DModel": TransformerLayout((Stack("transformer_blocks"),), video_patches()),
    "SanaWMTransformer3DModel": TransformerLayout((Stack("blocks"),), video_patches()),
    "SkyReelsV2Transformer3DModel": _WAN,
    "WanTransformer3DModel": _WAN,
    "WanAnimateTransformer3DModel": _WAN,
    "WanAnimate2Transformer3DModel": TransformerLayout((Stack("blocks"),), video_grids.noisy_videos_of_wan_animate_2),
    "WanVACETransformer3DModel": _WAN,
}

UNSUPPORTED: Final[dict[str, str]] = {
    "SanaWMLTX2RefinerTransformer3DModel": (
        "it is given tokens and their rotary embedding, neither of which tells how many frames, rows and columns there "
        "are; and its forward does not honour enable_gradient_checkpointing()."
    ),
    "TransformerTemporalModel": (
        "it is a layer within a U-Net of videos, not a model that denoises: train the U-Net itself."
    ),
}
"""Video classes of diffusers without a layout, and why."""
