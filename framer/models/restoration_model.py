"""A diffusion model together with what stands between it and images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from framer.config.model import ModelConfig
from framer.models.backbones import backbone_for
from framer.models.latents import LatentSpace, build_latents
from framer.models.text import TextEmbeddings, check_text_sizes, text_embeddings

if TYPE_CHECKING:
    from diffusers import ModelMixin


class RestorationModel:
    """Calls a model as its family is called: with the low-resolution image as a condition, and the text.

    Args:
        model: The model in training, or one to restore with.
        config: What it was built from.
        device: Where the model is.
        latents: What it diffuses; built from the configuration by default.
        null_text: Embeddings of the empty text, where images have texts of their own.

    Attributes:
        text: The embeddings that the configuration names, or else those of the empty text, or else zeros.

    Raises:
        UserError: The autoencoder or the text embeddings are missing, damaged or do not fit.
    """

    def __init__(
        self,
        model: ModelMixin,
        config: ModelConfig,
        device: torch.device,
        *,
        latents: LatentSpace | None = None,
        null_text: TextEmbeddings | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.backbone = backbone_for(config)
        self.latents = self.backbone.latents_seen(build_latents(config, device)) if latents is None else latents
        sizes = self.backbone.text_sizes(model)
        if null_text is not None:
            check_text_sizes(null_text, sizes, model=f"the {type(model).__name__}")
        self.text = text_embeddings(config, sizes, null=null_text)

    def inputs(
        self, sample: Tensor, reference: Tensor, timesteps: Tensor, *, text: TextEmbeddings | None = None
    ) -> dict[str, Any]:
        """Keyword arguments of the model's forward, in its dtype.

        Args:
            sample: Noisy latents, ``[B, C, h, w]``.
            reference: As :meth:`LatentSpace.reference` gives it, ``[B, C', h, w]``.
            timesteps: ``[B]`` float32 in [0, 1000].
            text: Of one image or of each of the batch; :attr:`text` by default.
        """
        dtype = next(self.model.parameters()).dtype
        sample, condition = sample.to(dtype), self.latents.condition(reference).to(dtype)
        text = (text or self.text).expand(len(sample), sample)
        height, width = (side * self.latents.shape.downscale for side in sample.shape[-2:])
        return self.backbone.inputs(self.model, sample, condition, timesteps, text, image_size=(height, width))

    def predict(
        self,
        sample: Tensor,
        reference: Tensor,
        timesteps: Tensor,
        *,
        text: TextEmbeddings | None = None,
        run: Callable[..., Any] | None = None,
    ) -> Tensor:
        """The model's output, ``[B, C, h, w]``.

        Args:
            sample: As in :meth:`inputs`.
            reference: As in :meth:`inputs`.
            timesteps: As in :meth:`inputs`.
            text: As in :meth:`inputs`.
            run: Runs the model: the engine around it; by default the model itself.
        """
        output: Tensor = (run or self.model)(**self.inputs(sample, reference, timesteps, text=text)).sample
        return output
