"""Restoring the held-out photographs with the model in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from framer.config.training import TrainConfig
from framer.data.dataset import heldout_pairs
from framer.data.evaluation_photographs import check_crops
from framer.data.sources import evaluation_files
from framer.errors import UserError
from framer.inference.restore import Restorer
from framer.models.restoration_model import RestorationModel
from framer.objectives import build_objective

Image = NDArray[np.float32]


class Evaluated(NamedTuple):
    """Held-out crops and what the model made of them: images ``[H, W, 3]`` float32 in [0, 1]."""

    names: list[str]
    lr: list[Image]
    bicubic: list[Image]
    sr: list[Image]
    hr: list[Image]


class HeldOut(NamedTuple):
    """Crops of the evaluation photographs, in [-1, 1]."""

    names: list[str]
    hr: Tensor
    lr: Tensor
    lr_upsampled: Tensor


def load_heldout(config: TrainConfig) -> HeldOut:
    """Degrades the evaluation photographs; the same crops and degradations for every run with the same section.

    Raises:
        UserError: The folder is missing or empty, or photographs cannot be read or have no room for their crops.
    """
    check_crops(config)
    pairs = heldout_pairs(
        evaluation_files(config.data),
        crop_size=config.evaluation.crop_size,
        scale=config.data.scale,
        degradation=config.data.degradation,
        seed=config.evaluation.seed,
        crops_per_photo=config.evaluation.crops_per_photo,
    )
    return HeldOut(
        _distinct([pair["name"] for pair in pairs]),
        torch.stack([pair["hr"] for pair in pairs]),
        torch.stack([pair["lr"] for pair in pairs]),
        torch.stack([pair["lr_upsampled"] for pair in pairs]),
    )


def evaluated_before(config: TrainConfig, *, step: int) -> bool:
    """Whether a run that has taken ``step`` steps is evaluated before the next: at the first, from trained weights.

    So a report tells what training changed from what the weights could before. Random weights can do nothing.
    """
    return step == 0 and config.model.pretrained is not None


def samples_due(config: TrainConfig, *, step: int) -> bool:
    """Whether samples are written after ``step`` steps; those of the last step belong to the report."""
    every = config.training.sample_steps
    return every > 0 and step > 0 and step % every == 0 and step != config.training.max_steps


def evaluations_left(config: TrainConfig, *, step: int) -> int:
    """How often a run that has taken ``step`` steps will be evaluated until its end."""
    every, last = config.training.sample_steps, config.training.max_steps
    between = (last - 1) // every - step // every if every and step < last else 0
    return int(evaluated_before(config, step=step)) + between + 1


def build_restorer(model: RestorationModel, config: TrainConfig) -> Restorer:
    """A restorer around the model in training; under ZeRO 3 all ranks must call it together."""
    return Restorer(
        model=model.predict,
        latents=model.latents,
        objective=build_objective(config.objective, model.latents),
        tile=config.data.crop_size // model.latents.shape.downscale,
        tile_overlap=config.evaluation.tile_overlap,
        multiple=model.backbone.multiple(model.model),
        num_inference_steps=config.evaluation.num_inference_steps,
    )


def restore_heldout(
    model: RestorationModel,
    heldout: HeldOut,
    config: TrainConfig,
    *,
    before_each: Callable[[], None] = lambda: None,
) -> Evaluated:
    """Restores all held-out crops; under ZeRO 3 all ranks must call it together.

    Args:
        model: In training; its mode is put back.
        heldout: The crops.
        config: The run.
        before_each: Called before each crop; may raise to leave early.

    Raises:
        UserError: What the model makes of a crop is not finite.
    """
    was_training = model.model.training
    model.model.eval()
    restorer = build_restorer(model, config)
    sr: list[Tensor] = []
    for upsampled in heldout.lr_upsampled:
        before_each()
        restored = restorer(upsampled[None].to(model.device), seed=config.evaluation.seed).cpu()[0]
        if not restored.isfinite().all():
            raise UserError(
                f"what the model makes of the evaluation photograph {heldout.names[len(sr)]} is not finite: "
                "its weights are of no use; go on from an earlier checkpoint with a lower optimizer.lr"
            )
        sr.append(restored)
    model.model.train(was_training)
    return Evaluated(
        heldout.names, _images(heldout.lr), _images(heldout.lr_upsampled), _images(sr), _images(heldout.hr)
    )


def _images(batch: Tensor | Sequence[Tensor]) -> list[Image]:
    return [((image.permute(1, 2, 0) + 1) / 2).clamp(0, 1).contiguous().numpy() for image in batch]


def _distinct(names: list[str]) -> list[str]:
    """Numbers the names of files that are called the same in different folders."""
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]
