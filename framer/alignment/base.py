"""What every alignment loss is given and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor


class LayerLosses(NamedTuple):
    """The alignment loss of N students.

    Attributes:
        loss: ``[N]`` float32 at least, each layer's, before the reduction over layers and the weight.
    """

    loss: Tensor


@dataclass(frozen=True)
class AlignmentMaps:
    """Features of one forward pass.

    Attributes:
        students: Maps ``[B, C, h, w]`` of the students, with gradients.
        teacher: The teacher's map ``[B, C, h, w]``, detached; None where no layer teaches.
        images: Clean images ``[B, 3, H, W]`` in -1..1; None where they were not given.
        autocast: Autocast as about the layers, for modules that take their maps on.
        group: Processes whose samples the loss compares with this one's; None for this process alone.
    """

    students: tuple[Tensor, ...]
    teacher: Tensor | None
    images: Tensor | None
    autocast: Callable[[], AbstractContextManager[Any]]
    group: dist.ProcessGroup | None


class Alignment(ABC):
    """An alignment loss other than FRAMER's."""

    @abstractmethod
    def losses(self, maps: AlignmentMaps) -> Tensor:
        """Each student's loss, ``[N]`` float32 at least, with gradients to the students and to projectors alone.

        Raises:
            FeatureError: A map or image does not have the shape that the method needs, or is missing.
        """

    @property
    def teacher_name(self) -> str | None:
        """What teaches, where it is no layer of the model; None where nothing else does."""
        return None
