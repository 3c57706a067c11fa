"""REPA (arXiv 2410.06940) and iREPA: an early layer learns a frozen encoder's features of the clean image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from framer.alignment.base import Alignment, AlignmentMaps
from framer.alignment.distances import token_cosine_loss
from framer.alignment.encoders import ImageEncoder
from framer.alignment.projectors import Projectors
from framer.config.alignment import RepaConfig
from framer.features.errors import FeatureError

DEVIATION_FLOOR = 1e-6
"""Added to the deviation that ``spatial_norm`` divides by."""


class Repa(Alignment):
    """``-cos(projector(x_i)[token], encoder(image)[token])``, mean over tokens and samples.

    Args:
        projectors: Of the students.
        numbers: The students' numbers.
        encoder: Frozen; on the students' device.
        config: Whether the encoder's features are normalised over the image.
    """

    def __init__(
        self, projectors: Projectors, numbers: Sequence[int], encoder: ImageEncoder, config: RepaConfig
    ) -> None:
        self._projectors = projectors
        self._numbers = tuple(numbers)
        self._encoder = encoder
        self._spatial_norm = config.spatial_norm

    @property
    def teacher_name(self) -> str:
        """What teaches: the encoder's class."""
        inner = getattr(self._encoder, "model", self._encoder)
        return type(inner).__name__

    def losses(self, maps: AlignmentMaps) -> Tensor:
        """See :class:`Alignment`.

        Raises:
            FeatureError: The clean images were not given, or have another shape.
        """
        images, students = maps.images, maps.students
        if images is None:
            raise FeatureError("method repa: pass the clean images, framer.loss(images=...), [B, 3, H, W] in -1..1")
        if images.ndim != 4 or images.shape[:2] != (len(students[0]), 3):
            raise FeatureError(
                f"method repa: images have shape {list(images.shape)}; expected [{len(students[0])}, 3, H, W]"
            )
        with maps.autocast():
            projections = self._projectors.project(self._numbers, students)
        losses = []
        targets: dict[tuple[int, int], Tensor] = {}
        for projected in projections:
            height, width = projected.shape[-2:]
            if (height, width) not in targets:
                targets[height, width] = self._target(images, height, width)
            losses.append(token_cosine_loss(projected, targets[height, width]))
        return torch.stack(losses)

    def _target(self, images: Tensor, height: int, width: int) -> Tensor:
        features: Tensor = self._encoder(images, height, width)
        if not self._spatial_norm:
            return features
        deviation, mean = torch.std_mean(features, dim=(2, 3), keepdim=True)
        return (features - mean) / (deviation + DEVIATION_FLOOR)
