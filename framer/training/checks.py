"""Whether crops, model and FRAMER's bands fit together, which only the built model can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from framer.config.training import TrainConfig
from framer.data.buckets import CropSize
from framer.errors import ConfigError, UserError
from framer.features import adapter_for
from framer.models.backbones import backbone_for
from framer.models.latents import latent_shape
from framer_kernels import BandSplit

if TYPE_CHECKING:
    from diffusers import ModelMixin


def check_sizes(model: ModelMixin, config: TrainConfig) -> None:
    """Checks every size of crop that the model will see.

    Raises:
        UserError: A size is no multiple of what the model needs or too large for it, or FRAMER's cutoff leaves one of
            its bands empty.
    """
    backbone, downscale = backbone_for(config.model), latent_shape(config.model).downscale
    multiple = backbone.multiple(model) * downscale
    side = backbone.largest_side(model)
    largest = None if side is None else side * downscale
    needs = f"the model needs multiples of {multiple}"
    crop = config.data.crop_size
    # Crops of crop_size are the tiles of inference, even where buckets give the sizes in training.
    sizes = {f"data.crop_size {crop}": CropSize(crop, crop)}
    sizes |= {f"data.buckets [{h}, {w}]": CropSize(h, w) for h, w in config.data.buckets}
    for key, size in sizes.items():
        if size.height % multiple or size.width % multiple or (largest is not None and max(size) > largest):
            raise UserError(f"{key}: {needs}{'' if largest is None else f', at most {largest} a side'}")
        height, width = (length // downscale for length in size)
        if config.framer.feature_space == "hidden":
            height, width = backbone.feature_size(model, height, width)
        if config.framer.enabled and config.framer.method == "framer" and config.framer.bands == "radial":
            try:
                BandSplit.radial(config.framer.cutoff).low_mask(torch.zeros(1, 1, height, width, dtype=torch.complex64))
            except ValueError as error:
                raise UserError(f"framer.cutoff {config.framer.cutoff} with {key}: {error}") from None
    if config.evaluation.crop_size % multiple:
        raise UserError(f"evaluation.crop_size {config.evaluation.crop_size}: {needs}")


def check_compilation(model: ModelMixin, config: TrainConfig) -> None:
    """Refuses to compile what torch's compiler does not take.

    Raises:
        ConfigError: The model is a U-Net.
    """
    if config.model.compile_blocks and adapter_for(model).channels is not None:
        raise ConfigError(
            f"model.compile_blocks with a {type(model).__name__}: torch's compiler fails on its stages; leave it out"
        )
