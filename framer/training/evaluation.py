"""Restoring the held-out photographs with the model in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from framer.config.training import TrainConfig
from framer.data.dataset import heldout_pairs
from framer.data.images import find_images
from framer.data.photographs import bundled_photographs
from framer.inference.restore import Restorer
from framer.models.conditioning import model_inputs
from framer.models.latents import build_latents
from framer.objectives import build_objective

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

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
        UserError: The folder is missing or empty, or a photograph cannot be read or is smaller than the crop.
    """
    source = config.data.evaluation
    if source == "heldout":
        paths = bundled_photographs("heldout")
    elif source == "validation":
        paths = bundled_photographs("validation")
    else:
        paths = find_images(Path(source).expanduser())
    pairs = heldout_pairs(
        paths,
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


def build_restorer(model: SD3Transformer2DModel, config: TrainConfig) -> Restorer:
    """A restorer around the model in training; under ZeRO 3 all ranks must call it together."""
    parameter = next(model.parameters())
    latents = build_latents(config.model)

    def run(sample: Tensor, reference: Tensor, timesteps: Tensor) -> Tensor:
        condition = latents.condition(reference)
        inputs = model_inputs(
            model,
            sample.to(parameter.dtype),
            condition.to(parameter.dtype),
            timesteps,
            text_tokens=config.model.text_tokens,
        )
        output: Tensor = model(**inputs).sample
        return output

    return Restorer(
        model=run,
        latents=latents,
        objective=build_objective(config.objective, latents),
        tile=config.data.crop_size,
        tile_overlap=config.evaluation.tile_overlap,
        patch_size=int(model.config.patch_size),
        num_inference_steps=config.evaluation.num_inference_steps,
    )


def restore_heldout(
    model: SD3Transformer2DModel,
    heldout: HeldOut,
    config: TrainConfig,
    device: torch.device,
    *,
    before_each: Callable[[], None] = lambda: None,
) -> Evaluated:
    """Restores all held-out crops; under ZeRO 3 all ranks must call it together.

    Args:
        model: In training; its mode is put back.
        heldout: The crops.
        config: The run.
        device: Of the model.
        before_each: Called before each crop; may raise to leave early.
    """
    was_training = model.training
    model.eval()
    restorer = build_restorer(model, config)
    sr = []
    for upsampled in heldout.lr_upsampled:
        before_each()
        sr.append(restorer(upsampled[None].to(device), seed=config.evaluation.seed).cpu()[0])
    model.train(was_training)
    return Evaluated(
        heldout.names, _images(heldout.lr), _images(heldout.lr_upsampled), _images(sr), _images(heldout.hr)
    )


def _images(batch: Tensor | Sequence[Tensor]) -> list[Image]:
    return [((image.permute(1, 2, 0) + 1) / 2).clamp(0, 1).contiguous().numpy() for image in batch]


def _distinct(names: list[str]) -> list[str]:
    """Numbers the names of files that are called the same in different folders."""
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]
