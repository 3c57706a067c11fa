"""The frozen model that score distillation asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from framer.config.model import ModelConfig
from framer.errors import UserError
from framer.models.backbones.unet import UnconditionedUNetBackbone
from framer.models.folders import read_model_config
from framer.models.text import TextEmbeddings, check_text_sizes, text_embeddings
from framer.models.weights import WEIGHTS_FILE, has_weights

if TYPE_CHECKING:
    from diffusers import ModelMixin

_KEY = "objective.csd_base"


class BaseModel:
    """A frozen U-Net that predicts noise, with and without the text.

    Args:
        model: Put into evaluation mode and frozen.
        config: Names the texts.
        downscale: Pixels a side of a latent pixel.
        null_text: Embeddings of the empty text, where images have texts of their own: the negative text where the
            configuration names none.

    Raises:
        UserError: The text embeddings are missing, damaged or do not fit.
    """

    def __init__(
        self, model: ModelMixin, config: ModelConfig, *, downscale: int, null_text: TextEmbeddings | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self._backbone = UnconditionedUNetBackbone()
        self._downscale = downscale
        sizes = self._backbone.text_sizes(model)
        if null_text is not None:
            check_text_sizes(null_text, sizes, model=f"the {type(model).__name__} of {_KEY}")
        self._texts = {
            negative: text_embeddings(config, sizes, negative=negative, null=null_text) for negative in (False, True)
        }

    @torch.no_grad()
    def __call__(
        self, noisy: Tensor, timesteps: Tensor, *, with_text: bool, text: TextEmbeddings | None = None
    ) -> Tensor:
        """See :class:`framer.objectives.score_distillation.BaseEpsilon`.

        Args:
            noisy: As there.
            timesteps: As there.
            with_text: As there.
            text: Of each image of the batch, in the place of the one that the configuration names for all.
        """
        sample = noisy.to(self.model.dtype)
        height, width = (side * self._downscale for side in noisy.shape[-2:])
        seen = text if with_text and text is not None else self._texts[not with_text]
        seen = seen.expand(len(noisy), sample)
        inputs = self._backbone.inputs(self.model, sample, sample, timesteps, seen, image_size=(height, width))
        epsilon: Tensor = self.model(**inputs).sample
        return epsilon.float()


def load_base_model(
    folder: Path,
    config: ModelConfig,
    *,
    channels: int,
    downscale: int,
    device: torch.device,
    dtype: torch.dtype,
    null_text: TextEmbeddings | None = None,
) -> BaseModel:
    """Loads ``objective.csd_base``.

    Args:
        folder: A diffusers folder.
        config: Names the texts.
        channels: Of the latents.
        downscale: Pixels a side of a latent pixel.
        device: Where it goes; on ``meta`` its weights are not read.
        dtype: Of its weights.
        null_text: As :class:`BaseModel` takes it.

    Raises:
        UserError: The folder is missing, incomplete, damaged, of another class or for other latents.
    """
    cls, settings = UnconditionedUNetBackbone().model_class, read_model_config(folder, key=_KEY)
    found = settings.get("_class_name")
    if found != cls.__name__:
        raise UserError(f"{_KEY}: {folder} holds {found}; expected {cls.__name__}")
    if (settings.get("in_channels"), settings.get("out_channels")) != (channels, channels):
        raise UserError(
            f"{_KEY}: the model in {folder} has {settings.get('in_channels')} input and {settings.get('out_channels')} "
            f"output channels; expected {channels}, those of the latents"
        )
    if device.type == "meta":
        with device:
            model = nn.Module.to(cls.from_config(settings), dtype)
        return BaseModel(model, config, downscale=downscale, null_text=null_text)
    if not has_weights(folder):
        raise UserError(f"{_KEY}: {folder / WEIGHTS_FILE} not found; expected a folder written by save_pretrained")
    try:
        model = cls.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True)
    except Exception as error:  # whatever a damaged file makes diffusers raise
        raise UserError(f"{_KEY}: cannot load {folder}: {type(error).__name__}: {error}") from error
    return BaseModel(model.to(device), config, downscale=downscale, null_text=null_text)
