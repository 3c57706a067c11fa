"""Rules that tell the grid of image tokens from the arguments of a model's forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from framer.features.adapters.layouts import Arguments, GridRule, TokenGrid
from framer.features.errors import FeatureError


def patchified(argument: str = "hidden_states", *, patch: str = "patch_size") -> GridRule:
    """One token a patch of a latent ``[B, C, H, W]`` or ``[B, C, F, H, W]``.

    A remainder smaller than a patch is cut off, as patch embeddings do.

    Args:
        argument: Name of the latent among the forward's arguments.
        patch: The patch's side, or its sides, in the model's config; without it there is one token a pixel.

    Raises:
        FeatureError: The latent has another number of dimensions.
    """

    def grid(model: nn.Module, arguments: Arguments) -> TokenGrid:
        latent: Tensor = arguments[argument]
        if latent.ndim not in (4, 5):
            raise FeatureError(
                f"{argument} of {type(model).__name__} has shape {list(latent.shape)}; expected a latent "
                "[B, C, H, W] or [B, C, F, H, W]."
            )
        return _patches((1, *latent.shape[2:])[-3:], _patch_sides(model, patch))

    return grid


def last_item(name: str = "hidden_states") -> GridRule:
    """The grid of the last of several latents ``[B, items, C, F, H, W]``, or of the one latent ``[B, C, F, H, W]``."""

    def grid(model: nn.Module, arguments: Arguments) -> TokenGrid:
        return _patches(arguments[name].shape[-3:], _patch_sides(model))

    return grid


def listed_latents(name: str = "x") -> GridRule:
    """The grid of latents ``[C, F, H, W]`` in a list, cut into patches of the arguments' sizes.

    Raises:
        FeatureError: The images of the batch differ in size, or come with reference images.
    """

    def grid(model: nn.Module, arguments: Arguments) -> TokenGrid:
        latents: Sequence[Any] = arguments[name]
        if isinstance(latents[0], list):
            raise FeatureError(
                f"{type(model).__name__} was called with lists of reference images in {name}; FRAMER knows where its "
                f"tokens lie for one image a sample: pass {name} as a list of tensors [C, F, H, W]."
            )
        side = arguments.get("patch_size", 2)
        size = _one_of_all([tuple(latent.shape[1:]) for latent in latents], name)
        return _patches(size, (arguments.get("f_patch_size", 1), side, side))

    return grid


def from_ids(name: str = "img_ids", after: str | None = None) -> GridRule:
    """The grid that the rotary coordinates of packed tokens describe: ``(frame, row, column, ...)`` a token.

    The image is the first frame; reference images follow it with other frame coordinates. Coordinates may start
    anywhere and be scaled.

    Args:
        name: The coordinates among the arguments of the forward, ``[L, n]`` or ``[B, L, n]``.
        after: The argument ``[B, T, ...]`` whose ``T`` tokens lead these coordinates.

    Raises:
        FeatureError: The coordinates are no rows and columns in row-major order.
    """

    def grid(model: nn.Module, arguments: Arguments) -> TokenGrid:
        ids: Tensor = arguments[name]
        ids = ids[0] if ids.ndim == 3 else ids
        return _grid_of_ids(ids if after is None else ids[arguments[after].shape[1] :], name)

    return grid


def from_marked_ids(name: str, marks: str, mark: int) -> GridRule:
    """As ``from_ids``, of the tokens of a joint sequence whose ``marks`` ``[B, L]`` are ``mark``."""

    def grid(model: nn.Module, arguments: Arguments) -> TokenGrid:
        return _grid_of_ids(arguments[name][0][arguments[marks][0] == mark], name)

    return grid


def from_shapes(name: str = "img_shapes", item: int = 0) -> GridRule:
    """The grid among the shapes ``(frames, rows, columns)`` that the model is given for its packed tokens.

    Args:
        name: The shapes among the arguments: one a sample, or a list of them a sample.
        item: Which of a sample's shapes is the image; the others are references.

    Raises:
        FeatureError: The shapes differ within the batch.
    """

    def grid(model: nn.Module, arguments: Arguments) -> TokenGrid:
        shapes = _shapes_of_samples(arguments[name])
        frames, height, width = _one_of_all([sample[item] for sample in shapes], name)
        return TokenGrid(frames, height, width)

    return grid


def from_layered_shapes(name: str = "img_shapes") -> GridRule:
    """As ``from_shapes``; a model with rotary coordinates a layer has every shape but the last one as a frame."""
    first = from_shapes(name)

    def grid(model: nn.Module, arguments: Arguments) -> TokenGrid:
        of_first = first(model, arguments)
        config: Any = model.config
        if not config.get("use_layer3d_rope"):
            return of_first
        (layers,) = _one_of_all([(len(sample) - 1,) for sample in _shapes_of_samples(arguments[name])], name)
        return of_first._replace(frames=of_first.frames * layers)

    return grid


def from_sizes(name: str = "img_sizes", latent: str = "hidden_states") -> GridRule:
    """The grid of a latent ``[B, C, H, W]``, or the sizes ``(rows, columns)`` given with tokens that are packed.

    Raises:
        FeatureError: The sizes differ within the batch.
    """
    of_latent = patchified(latent)

    def grid(model: nn.Module, arguments: Arguments) -> TokenGrid:
        if arguments[latent].ndim == 4:
            return of_latent(model, arguments)
        height, width = _one_of_all([tuple(map(int, size)) for size in arguments[name]], name)
        return TokenGrid(1, height, width)

    return grid


def without(argument: str, rule: GridRule) -> GridRule:
    """The grid of another rule, for calls that leave an argument out that moves the image tokens.

    Raises:
        FeatureError: The argument was given.
    """

    def checked(model: nn.Module, arguments: Arguments) -> TokenGrid:
        if arguments.get(argument) is not None:
            raise FeatureError(
                f"{type(model).__name__} was called with {argument}={arguments[argument]!r}, which moves its image "
                f"tokens: leave {argument} out."
            )
        return rule(model, arguments)

    return checked


def patch_side(model: nn.Module) -> int:
    """Side of a patch, in latent pixels; of a model with patches of several sizes, the first one's."""
    config: Any = model.config
    if "all_patch_size" in config:
        return int(config["all_patch_size"][0])
    return _patch_sides(model)[-1]


def _patches(latent: Sequence[int], sides: Sequence[int]) -> TokenGrid:
    """How many whole patches a latent of so many frames, rows and columns holds."""
    frames, height, width = (size // side for size, side in zip(latent, sides, strict=True))
    return TokenGrid(frames, height, width)


def _patch_sides(model: nn.Module, name: str = "patch_size") -> tuple[int, int, int]:
    """Frames, rows and columns of a patch."""
    config: Any = model.config
    patch = config.get(name)
    if patch is None:
        return 1, 1, 1
    sides = [patch, patch] if isinstance(patch, int) else patch
    frames, height, width = (1, *sides)[-3:]
    return frames, height, width


def _shapes_of_samples(shapes: Any) -> list[list[tuple[int, ...]]]:
    if isinstance(shapes[0], int):
        shapes = [shapes]
    return [[tuple(sample)] if isinstance(sample[0], int) else [tuple(shape) for shape in sample] for sample in shapes]


def _one_of_all(sizes: Sequence[tuple[int, ...]], name: str) -> tuple[int, ...]:
    if len(set(sizes)) > 1:
        raise FeatureError(
            f"{name} has images of different sizes in one batch ({', '.join(map(str, sorted(set(sizes))))}): their "
            "feature maps have no common shape. Put images of one size into a batch."
        )
    return sizes[0]


def _grid_of_ids(ids: Tensor, name: str) -> TokenGrid:
    # One copy from the device instead of one for every comparison.
    ids = ids.detach().cpu()
    frame, row, column = ids[:, 0], ids[:, 1], ids[:, 2]
    count = _leading(frame)
    width = _leading(row[:count])
    height = count // width if width else 0
    rows, columns = row[: height * width].view(height, width), column[: height * width].view(height, width)
    regular = (
        0 < height * width == count
        and torch.equal(rows, rows[:, :1].expand_as(rows))
        and torch.equal(columns, columns[:1].expand_as(columns))
        and bool((rows.diff(dim=0) > 0).all())
        and bool((columns.diff(dim=1) > 0).all())
    )
    if not regular:
        raise FeatureError(
            f"{name} of shape {list(ids.shape)} and type {ids.dtype} are not the coordinates (frame, row, column) of "
            "an image in row-major order; coordinates in half precision may have lost their last digits: pass "
            "them in float32."
        )
    return TokenGrid(1, height, width)


def _leading(values: Tensor) -> int:
    """How many of the values before the first other one are equal."""
    return int((values == values[:1]).long().cumprod(0).sum())
