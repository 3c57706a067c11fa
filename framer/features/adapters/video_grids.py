"""Rules that tell the frames, rows and columns of tokens from the arguments of a video model's forward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from framer.features.adapters.layouts import Arguments, GridRule, TokenGrid
from framer.features.errors import FeatureError


def video_patches(frames: int = -3, rows: int = -2, columns: int = -1) -> GridRule:
    """One token a patch of a video latent ``hidden_states``, or of each latent of a list of them.

    A remainder smaller than a patch is cut off, as patch embeddings do.

    Args:
        frames: The latent's axis of frames, counted from its end.
        rows: Its axis of rows.
        columns: Its axis of columns.
    """

    def grid(model: Any, arguments: Arguments) -> TokenGrid:
        latents = arguments["hidden_states"]
        shapes = {tuple(latent.shape) for latent in ([latents] if isinstance(latents, Tensor) else latents)}
        if len(shapes) != 1:
            raise FeatureError(
                f"the videos of a batch must have one shape; {type(model).__name__} was given {sorted(shapes)}: train "
                "on batches of one size."
            )
        (shape,) = shapes
        sides = _patch_sides(model)
        return TokenGrid(*(shape[axis] // side for axis, side in zip((frames, rows, columns), sides, strict=True)))

    return grid


def named_sizes(*, in_patches: bool) -> GridRule:
    """The forward's own ``num_frames``, ``height`` and ``width``, for latents that are packed into tokens.

    Args:
        in_patches: Whether these count tokens; otherwise they count what ``patch_size`` and ``patch_size_t`` divide.
    """

    def grid(model: Any, arguments: Arguments) -> TokenGrid:
        names = ("num_frames", "height", "width")
        sizes = {name: int(arguments[name]) for name in names if arguments.get(name) is not None}
        missing = [name for name in names if name not in sizes]
        if missing:
            raise FeatureError(
                f"the token grid of {type(model).__name__} needs the forward's {', '.join(missing)}: pass num_frames, "
                "height and width, also beside video_coords."
            )
        sides = (1, 1, 1) if in_patches else _patch_sides(model)
        # The model goes through each size in steps of a patch: what is left over makes a patch of its own.
        return TokenGrid(*(math.ceil(size / side) for size, side in zip(sizes.values(), sides, strict=True)))

    return grid


def noisy_videos_of_wan_animate_2(model: Any, arguments: Arguments) -> TokenGrid:
    """Wan-Animate 2: the pass over the noisy videos; the one that reads the reference video is refused.

    Raises:
        FeatureError: It is another pass.
    """
    mode = arguments["kv_cache_mode"]
    if mode != "cached":
        raise FeatureError(
            f"capture() saw {type(model).__name__} with kv_cache_mode={mode!r}, the pass over the reference video; run "
            "that one before capture(), and inside it the pass with kv_cache_mode='cached'."
        )
    return video_patches()(model, arguments)


def full_frames_of_anyflow(model: Any, arguments: Arguments) -> TokenGrid:
    """AnyFlow FAR in training: the frames that are not compressed, which alone are denoised.

    Raises:
        FeatureError: There is a cache, as for sampling.
    """
    if arguments.get("kv_cache") is not None:
        raise FeatureError(
            f"capture() saw {type(model).__name__} with a kv_cache, as for sampling; leave kv_cache out to train."
        )
    grid = video_patches(frames=-4)(model, arguments)
    chunks = arguments["chunk_partition"]
    # The oldest chunks, beyond the limit, are compressed.
    compressed = sum(chunks[: max(0, len(chunks) - model.config["full_chunk_limit"])])
    return grid._replace(frames=grid.frames - compressed)


def one_vision_item(model: Any, arguments: Arguments) -> TokenGrid:
    """Cosmos 3: the one video of its packed sequence.

    Raises:
        FeatureError: There are several videos in the sequence, or none.
    """
    shapes = arguments["vision_token_shapes"]
    if len(shapes) != 1:
        raise FeatureError(
            f"{type(model).__name__} was given {len(shapes)} videos in one sequence, which attend to each other; pass "
            "one video at a time."
        )
    return TokenGrid(*map(int, shapes[0]))


def generated_rows_of_minimax(arguments: Arguments) -> Tensor:
    """MiniMax H3: where the generated video lies in the sequence, ``[F*h*w]`` integers.

    The video's rows come after those of its conditions, which have a timestep of their own.
    """
    rows: Tensor = arguments["video_indices"]
    timesteps: Tensor = arguments["timestep_indices"][rows]
    conditions = (timesteps != timesteps[-1]).nonzero()
    return rows[int(conditions[-1]) + 1 :] if len(conditions) else rows


def minimax_positions(model: Any, arguments: Arguments) -> TokenGrid:
    """MiniMax H3: the grid on which the generated video's positions ``(t, y, x)`` lie, frame by frame, row by row.

    Raises:
        FeatureError: The positions are not those of one grid.
    """
    positions: Tensor = arguments["position_ids"][generated_rows_of_minimax(arguments)]
    columns = _run_length(positions[:, :2])
    rows = _run_length(positions[:, :1]) // columns
    frames = len(positions) // (rows * columns)
    if frames * rows * columns == len(positions):
        lattice = positions.view(frames, rows, columns, 3)
        axes = (lattice[:, 0, 0, 0], lattice[0, :, 0, 1], lattice[0, 0, :, 2])
        expected = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        if torch.equal(lattice, expected) and all(bool((axis.diff() > 0).all()) for axis in axes):
            return TokenGrid(frames, rows, columns)
    raise FeatureError(
        f"the {len(positions)} rows of the generated video in {type(model).__name__} have position_ids that are not a "
        "grid, frame by frame and row by row: give conditioning rows a timestep of their own, ahead of the video's."
    )


def _run_length(values: Tensor) -> int:
    """How many rows of ``[N, K]`` equal the first, from the start."""
    others = (values != values[:1]).any(dim=1).nonzero()
    return int(others[0]) if len(others) else len(values)


def _patch_sides(model: Any) -> tuple[int, int, int]:
    """Frames, rows and columns of a patch."""
    side = model.config["patch_size"]
    if isinstance(side, int):
        return int(model.config.get("patch_size_t") or 1), side, side
    frames, rows, columns = side
    return int(frames), int(rows), int(columns)
