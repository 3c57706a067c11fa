"""Whether crops, model and FRAMER's bands fit together, which only the built model can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from framer.config.training import TrainConfig
from framer.data.buckets import CropSize
from framer.errors import UserError
from framer_kernels import BandSplit

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel


def check_tokens(model: SD3Transformer2DModel, config: TrainConfig) -> None:
    """Checks every size of crop that the model will see.

    Raises:
        UserError: A size is no multiple of the patch size or makes too large a grid of tokens, or FRAMER's cutoff
            leaves one of its bands empty.
    """
    patch, largest = int(model.config.patch_size), int(model.config.pos_embed_max_size)
    crop = config.data.crop_size
    # Crops of crop_size are the tiles of inference, even where buckets give the sizes in training.
    sizes = {f"data.crop_size {crop}": CropSize(crop, crop)}
    sizes |= {f"data.buckets [{h}, {w}]": CropSize(h, w) for h, w in config.data.buckets}
    for key, size in sizes.items():
        if size.height % patch or size.width % patch or max(size) // patch > largest:
            raise UserError(
                f"{key}: the model needs multiples of its patch size {patch}, at most {patch * largest} a side"
            )
        height, width = size if config.framer.feature_space != "hidden" else (size.height // patch, size.width // patch)
        if config.framer.enabled and config.framer.method == "framer" and config.framer.bands == "radial":
            try:
                BandSplit.radial(config.framer.cutoff).low_mask(torch.zeros(1, 1, height, width, dtype=torch.complex64))
            except ValueError as error:
                raise UserError(f"framer.cutoff {config.framer.cutoff} with {key}: {error}") from None
    if config.evaluation.crop_size % patch:
        raise UserError(
            f"evaluation.crop_size {config.evaluation.crop_size}: the model needs a multiple of its patch size {patch}"
        )
