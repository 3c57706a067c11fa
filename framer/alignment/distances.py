"""How far a student's map is from what it learns: losses that keep their two maps for the backward pass, and no more.

framer_kernels measures whole maps by bands, one cosine a sample. A cosine of every token, or a distance, is no product
of bands; these are plain torch, computed once more in the backward pass instead of keeping what they compute.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from framer.features.errors import FeatureError
from framer_kernels.precision import autocast_disabled

NORM_FLOOR = 1e-8
"""Smallest norm of a token that a cosine divides by."""


def token_cosine_loss(student: Tensor, target: Tensor) -> Tensor:
    """The negative cosine over channels, mean over tokens and samples; a scalar in -1..1.

    Args:
        student: ``[B, C, h, w]``, floating.
        target: As the student; gets no gradient.

    Raises:
        FeatureError: The shapes differ.
    """
    return _recomputed(_negative_cosine, student, target)


def squared_distance_loss(student: Tensor, target: Tensor) -> Tensor:
    """The squared difference, mean over samples, channels and positions, of the maps as they are; a scalar.

    Args:
        student: ``[B, C, h, w]``, floating.
        target: As the student; gets no gradient.

    Raises:
        FeatureError: The shapes differ.
    """
    return _recomputed(F.mse_loss, student, target)


def smooth_l1_loss(student: Tensor, target: Tensor) -> Tensor:
    """``d^2 / 2`` of differences d up to 1 and ``|d| - 1/2`` of larger ones, mean over all elements; a scalar.

    Args:
        student: ``[B, C, h, w]``, floating.
        target: As the student; gets no gradient.

    Raises:
        FeatureError: The shapes differ.
    """
    return _recomputed(F.smooth_l1_loss, student, target)


def _recomputed(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, target: Tensor) -> Tensor:
    if student.shape != target.shape:
        raise FeatureError(
            f"a student's map has shape {list(student.shape)}, and what it learns {list(target.shape)}: they must be "
            "of one shape"
        )

    def in_float32(x: Tensor, y: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        with autocast_disabled(x.device):
            return loss(x.to(dtype), y.to(dtype))

    result: Tensor = checkpoint(in_float32, student, target.detach(), use_reentrant=False, preserve_rng_state=False)
    return result


def _negative_cosine(x: Tensor, y: Tensor) -> Tensor:
    return -F.cosine_similarity(x, y, dim=1, eps=NORM_FLOOR).mean()
