"""The image transformers of diffusers, one layout a class."""

from __future__ import annotations

from typing import Final

from framer.features.adapters import grids, pickers
from framer.features.adapters.layouts import Head, Stack, TransformerLayout

_SPATIAL = Head()
_CHANNELS = Head(order="channels_first")
_PACKED = Head(order="packed")

_JOINT = Stack("transformer_blocks", output=1, tokens="first")
_SINGLE = Stack("single_transformer_blocks", output=1, tokens="first")
_MERGED = Stack("single_transformer_blocks", tokens=pickers.after())
_PLAIN = Stack("transformer_blocks")

# Diffusers' own value, written out: importing its module costs seconds at start.
_IDEOGRAM_IMAGE = 2

# By name: importing every diffusers model to compare classes would cost seconds at start.
LAYOUTS: Final[dict[str, TransformerLayout]] = {
    "AuraFlowTransformer2DModel": TransformerLayout(
        (Stack("joint_transformer_blocks", output=1), Stack("single_transformer_blocks", tokens="last")),
        grids.patchified(),
        _SPATIAL,
    ),
    "BriaFibo2Transformer2DModel": TransformerLayout(
        (Stack("noise_refiner", tokens="first"), Stack("layers", tokens=pickers.after_gist)),
        grids.patchified(),
        Head(("final_layer",), "channels_first"),
    ),
    "BriaFiboTransformer2DModel": TransformerLayout((_JOINT, _MERGED), grids.from_ids(), _PACKED),
    "BriaTransformer2DModel": TransformerLayout((_JOINT, _SINGLE), grids.from_ids(), _PACKED),
    "ChromaTransformer2DModel": TransformerLayout((_JOINT, _MERGED), grids.from_ids(), _PACKED),
    "CogView3PlusTransformer2DModel": TransformerLayout(
        (Stack("transformer_blocks", output=0),), grids.patchified(), _CHANNELS
    ),
    "CogView4Transformer2DModel": TransformerLayout(
        (Stack("transformer_blocks", output=0),), grids.patchified(), _CHANNELS
    ),
    # No head: between its norm and its projection the model scales and shifts by itself.
    "DiTTransformer2DModel": TransformerLayout((_PLAIN,), grids.patchified()),
    # No head: the output is a residual of the input.
    "DreamLiteTransformer2DModel": TransformerLayout((_PLAIN,), grids.patchified()),
    # No head: its norm takes tokens as [L, B, D].
    "ErnieImageTransformer2DModel": TransformerLayout(
        (Stack("layers", tokens=pickers.sequence_first),), grids.patchified()
    ),
    "Flux2Transformer2DModel": TransformerLayout(
        (_JOINT, _MERGED), grids.without("kv_cache_mode", grids.from_ids()), _PACKED
    ),
    "Flux3Transformer2DModel": TransformerLayout(
        (Stack("mode_blocks.image"), _SINGLE),
        grids.from_ids(),
        _PACKED,
    ),
    "FluxTransformer2DModel": TransformerLayout((_JOINT, _SINGLE), grids.from_ids(), _PACKED),
    "GlmImageTransformer2DModel": TransformerLayout(
        (Stack("transformer_blocks", output=0),), grids.patchified(), _CHANNELS
    ),
    # An image that is not square is padded to the longest sequence that the model takes.
    "HiDreamImageTransformer2DModel": TransformerLayout(
        (Stack("double_stream_blocks", output=0, tokens="first"), Stack("single_stream_blocks", tokens="first")),
        grids.from_sizes(),
        Head(("final_layer",), "spatial_first"),
    ),
    "HunyuanDiT2DModel": TransformerLayout((Stack("blocks"),), grids.patchified(), _SPATIAL),
    "HunyuanImageTransformer2DModel": TransformerLayout(
        (Stack("transformer_blocks", output=0), Stack("single_transformer_blocks", output=0)),
        grids.patchified(),
        _CHANNELS,
    ),
    "Ideogram4Transformer2DModel": TransformerLayout(
        (Stack("layers", tokens=pickers.marked("indicator", _IDEOGRAM_IMAGE)),),
        grids.from_marked_ids("position_ids", "indicator", _IDEOGRAM_IMAGE),
        Head(("final_layer",), "packed"),
    ),
    # The model moves the last of its items, the image that it makes, before the references.
    "JoyImageEditTransformer3DModel": TransformerLayout(
        (Stack("double_blocks", output=0, tokens="first"),), grids.last_item(), _SPATIAL
    ),
    "JoyImageEditPlusTransformer3DModel": TransformerLayout(
        (Stack("double_blocks", output=0, tokens="first"),), grids.from_shapes("shape_list"), _SPATIAL
    ),
    "Krea2Transformer2DModel": TransformerLayout(
        (Stack("transformer_blocks", tokens=pickers.after()),),
        grids.from_ids("position_ids", after="encoder_hidden_states"),
        Head(("final_layer",), "packed"),
    ),
    "LongCatImageTransformer2DModel": TransformerLayout((_JOINT, _SINGLE), grids.from_ids(), _PACKED),
    "Lumina2Transformer2DModel": TransformerLayout(
        (Stack("noise_refiner"), Stack("layers", tokens=pickers.after_prompts())),
        grids.patchified(),
        Head(("norm_out",), "spatial_first"),
    ),
    "LuminaNextDiT2DModel": TransformerLayout(
        (Stack("layers"),), grids.patchified(), Head(("norm_out",), "spatial_first")
    ),
    "NucleusMoEImageTransformer2DModel": TransformerLayout((_PLAIN,), grids.from_shapes(), _PACKED),
    # No head: the model gives its conditioning to the second of the head's modules.
    "OmniGenTransformer2DModel": TransformerLayout((Stack("layers", tokens="last"),), grids.patchified()),
    "OvisImageTransformer2DModel": TransformerLayout((_JOINT, _SINGLE), grids.from_ids(), _PACKED),
    "PRXTransformer2DModel": TransformerLayout(
        (Stack("blocks"),), grids.patchified(), Head(("final_layer",), "channels_first")
    ),
    # No head: as DiT.
    "PixArtTransformer2DModel": TransformerLayout((_PLAIN,), grids.patchified()),
    # No head: its norm takes a mask over text, references and image together.
    "QwenImage21Transformer2DModel": TransformerLayout(
        (Stack("transformer_blocks", tokens="last"),), grids.from_shapes(item=-1)
    ),
    "QwenImageTransformer2DModel": TransformerLayout((_JOINT,), grids.from_layered_shapes(), _PACKED),
    "SD3Transformer2DModel": TransformerLayout((Stack("transformer_blocks", output=1),), grids.patchified(), _SPATIAL),
    "SanaTransformer2DModel": TransformerLayout((_PLAIN,), grids.patchified(), _SPATIAL),
    # No head: as DiT where its input is cut into patches, otherwise a part of a U-Net whose output is a residual.
    "Transformer2DModel": TransformerLayout((_PLAIN,), grids.patchified()),
    "ZImageTransformer2DModel": TransformerLayout(
        (Stack("noise_refiner", tokens="first"), Stack("layers", tokens="first")),
        grids.listed_latents(),
        Head(("all_final_layer.2-1",), "spatial_first"),
    ),
}
