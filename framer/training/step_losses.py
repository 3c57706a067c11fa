"""Losses of micro-steps, and what an optimizer step's metrics say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from framer.alignment.base import LayerLosses
from framer.analysis.history import AlignmentMetrics, LayerMetrics
from framer.data.samples import Sample
from framer.distill import FramerOutput
from framer.training.engine import StepOutcome
from framer.training.forward import Losses
from framer.training.ranks import mean_over_ranks

LAYER_METRICS = ("intra", "inter", "weight_lf", "weight_hf", "align_lf", "align_hf")


class StepLosses(NamedTuple):
    """Means over the micro-steps and ranks of one optimizer step."""

    loss: Tensor
    noise_loss: Tensor
    framer_loss: Tensor
    layers: Tensor
    """With FRAMER ``[6, N]``, in the order of ``LAYER_METRICS``; with another alignment loss its ``[N]`` losses; empty
    without one."""


class MicroStep(NamedTuple):
    """One forward and backward pass of this rank."""

    losses: StepLosses
    batch: Sample
    outcome: StepOutcome


def step_losses(losses: Losses) -> StepLosses:
    """What is kept of a micro-step's losses, without their graph."""
    loss = losses.noise + losses.framer
    layers = loss.new_empty(0) if losses.out is None else _mean_diagnostics(losses.out)
    return StepLosses(loss.detach(), losses.noise.detach(), losses.framer.detach(), layers.detach())


def mean_losses(parts: Sequence[MicroStep]) -> StepLosses:
    """Means over micro-steps and ranks; every rank must call it."""
    values = zip(*(part.losses for part in parts), strict=True)
    return StepLosses(*(mean_over_ranks(torch.stack(value).mean(dim=0)) for value in values))


def layer_metrics(losses: StepLosses, names: Sequence[str]) -> LayerMetrics:
    """Each layer's means, for the metrics.

    Args:
        losses: Of a step with FRAMER.
        names: The students' names.
    """
    values = dict(zip(LAYER_METRICS, losses.layers.tolist(), strict=True))
    return LayerMetrics(names=list(names), **values)


def alignment_metrics(losses: StepLosses, method: str, names: Sequence[str]) -> AlignmentMetrics:
    """Each layer's loss, for the metrics.

    Args:
        losses: Of a step with another alignment loss than FRAMER's.
        method: Its name.
        names: The students' names.
    """
    return AlignmentMetrics(method=method, names=list(names), loss=losses.layers.tolist())


def _mean_diagnostics(out: FramerOutput) -> Tensor:
    if isinstance(out.layers, LayerLosses):
        return out.layers.loss.float()
    return torch.stack([getattr(out.layers, name).float().mean(dim=1) for name in LAYER_METRICS])
