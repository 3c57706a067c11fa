"""Heads that bring a student's map into the teacher's shape: a 1x1 convolution and a resize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS: Final = "framer_heads"
"""The attribute of a model that holds its heads, and so what their parameters' names begin with."""

_Value = TypeVar("_Value")


class FeatureHead(nn.Module):
    """One student's head: a 1x1 convolution without a bias, then a bilinear resize.

    Without a bias, because a constant map carries nothing of the image and would align the mean, which lies in the
    low band, for free. The convolution comes first: the two commute, and students are mostly smaller than the teacher.
    The resize is antialiased where it shrinks, so that what a smaller map cannot hold does not come back as another
    frequency.

    Args:
        in_channels: Of the student's map.
        out_channels: Of the teacher's map.
        generator: Of the initial weights.
    """

    def __init__(self, in_channels: int, out_channels: int, generator: torch.Generator) -> None:
        super().__init__()
        weight = torch.eye(out_channels)
        if in_channels != out_channels:
            weight = nn.init.orthogonal_(torch.empty(out_channels, in_channels), generator=generator)
        # On meta it draws nothing, so that a run's other random numbers stay what they are without heads.
        self.project = nn.Conv2d(in_channels, out_channels, 1, bias=False, device="meta")
        self.project.weight = nn.Parameter(weight[:, :, None, None].contiguous())

    def forward(self, feature: Tensor, teacher: Tensor) -> Tensor:
        """A student's map in the teacher's channels, size and dtype.

        Args:
            feature: The student's map ``[B, D, h, w]``, of the dtype of the weights or under autocast.
            teacher: The teacher's map ``[B, C, H, W]``.

        Returns:
            ``[B, C, H, W]``.
        """
        projected: Tensor = self.project(feature).to(teacher.dtype)
        size = teacher.shape[-2:]
        if projected.shape[-2:] == size:
            return projected
        if all(now <= then for now, then in zip(projected.shape[-2:], size, strict=True)):
            return F.interpolate(projected, size=size, mode="bilinear", align_corners=False)
        # torch's antialiased resize has no half precision on the CPU.
        precise = projected.to(torch.promote_types(projected.dtype, torch.float32))
        return F.interpolate(precise, size=size, mode="bilinear", align_corners=False, antialias=True).to(teacher.dtype)


class FeatureHeads(nn.Module):
    """The heads of a model's students, one each.

    They start as the identity where student and teacher have as many channels, and else as an orthogonal matrix, which
    keeps a map's inner products as far as the channels allow: the energies that FAW compares at first are about those
    of the features.

    An untrained head may leave its student's similarity to the teacher negative, where the gate FAM lets no gradient
    through: such a student learns in the other band, from other samples, or once the teacher has moved.

    They train by the FRAMER loss alone, with the model, and learn part of the alignment in its place: a small loss by
    itself does not tell that the model's own features have become more like the teacher's. The paper's scheme has this;
    nothing here counters it.

    Args:
        in_channels: Channels of each student's map, by the student's name within the model.
        out_channels: Channels of the teacher's map.
        generators: Of each student's initial weights, by its name.
    """

    def __init__(
        self, in_channels: Mapping[str, int], out_channels: int, generators: Mapping[str, torch.Generator]
    ) -> None:
        super().__init__()
        for name, channels in in_channels.items():
            self.add_module(_key(name), FeatureHead(channels, out_channels, generators[name]))

    def head(self, student: str) -> FeatureHead | None:
        """The head of a student by the student's name within the model; None where it has none."""
        head = self._modules.get(_key(student))
        return head if isinstance(head, FeatureHead) else None

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Channels in and out of each head, by the names of its parameters."""
        heads = {key: head.project for key, head in self.named_children() if isinstance(head, FeatureHead)}
        return {key: (project.in_channels, project.out_channels) for key, project in heads.items()}


def heads_of(model: nn.Module) -> FeatureHeads | None:
    """The heads that are attached to a model, itself without a wrapper about it; None without any."""
    heads = getattr(model, HEADS, None)
    return heads if isinstance(heads, FeatureHeads) else None


def without_heads(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """What of a state belongs to the model alone.

    Args:
        state: By the parameters' names, also with the names of wrappers in front.
    """
    return {name: value for name, value in state.items() if HEADS not in name.split(".")}


def _key(student: str) -> str:
    return student.replace(".", "_")
