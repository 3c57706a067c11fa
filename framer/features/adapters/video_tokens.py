"""Pickers of a video's tokens out of sequences that hold more, or hold them in another order."""

from __future__ import annotations

from torch import Tensor

from framer.features.adapters.layouts import Arguments, TokenGrid
from framer.features.adapters.video_grids import generated_rows_of_minimax
from framer.features.errors import FeatureError

_BLOCK = 8
"""Side of the square blocks of tokens that Kandinsky's sparse attention works on."""


def of_temporal_block(tokens: Tensor, _: Arguments, grid: TokenGrid) -> Tensor:
    """Out of a block that attends along time at each place apart: ``[B*h*w, F, D]`` to ``[B, F*h*w, D]``, a copy."""
    places, frames, channels = tokens.shape
    by_place = tokens.view(places // (grid.height * grid.width), grid.height * grid.width, frames, channels)
    return by_place.transpose(1, 2).flatten(1, 2)


def in_square_blocks(tokens: Tensor, _: Arguments, grid: TokenGrid) -> Tensor:
    """Puts tokens that are sorted by blocks of 8 x 8, as sparse attention wants them, row by row: a copy.

    Raises:
        FeatureError: The grid cannot be cut into such blocks.
    """
    frames, height, width = grid
    if height % _BLOCK or width % _BLOCK:
        raise FeatureError(f"sparse attention sorts tokens into blocks of 8 x 8, which a grid of {grid} cannot fill.")
    blocks = tokens.view(tokens.shape[0], frames, height // _BLOCK, width // _BLOCK, _BLOCK, _BLOCK, tokens.shape[-1])
    return blocks.transpose(3, 4).flatten(1, 5)


def of_kandinsky_5(tokens: Tensor, arguments: Arguments, grid: TokenGrid) -> Tensor:
    """Row by row already, unless the sparse attention is on."""
    sparse = arguments.get("sparse_params")
    return in_square_blocks(tokens, arguments, grid) if sparse is not None and sparse["to_fractal"] else tokens


def generated_by_minimax(tokens: Tensor, arguments: Arguments, _: TokenGrid) -> Tensor:
    """The generated video's tokens out of a sequence with text, conditions and audio, a copy."""
    return tokens.index_select(1, generated_rows_of_minimax(arguments))


def vision_of_cosmos_3(tokens: Tensor, arguments: Arguments, _: TokenGrid) -> Tensor:
    """The video's tokens out of the generated part ``[L, D]`` of the sequence: ``[1, F*h*w, D]``, a copy."""
    return tokens[arguments["vision_sequence_indexes"] - arguments["und_len"]][None]


def uncompressed_of_anyflow(tokens: Tensor, arguments: Arguments, grid: TokenGrid) -> Tensor:
    """The noisy frames that are not compressed: the compressed ones come first, the clean context last."""
    clean = arguments.get("clean_hidden_states")
    end = tokens.shape[1] - (0 if clean is None else grid.tokens)
    return tokens[:, end - grid.tokens : end]
