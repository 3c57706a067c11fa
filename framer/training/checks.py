"""Whether crops, model, prepared texts and latents, and FRAMER's bands fit together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from framer.config.training import TrainConfig
from framer.data.buckets import CropSize
from framer.data.shards.manifest import read_manifest
from framer.data.sources import shard_folder
from framer.errors import ConfigError, UserError
from framer.features import adapter_for
from framer.models.backbones import backbone_for
from framer.models.latents import latent_shape, vae_sha256
from framer.models.text import TextEmbeddings, check_text_sizes, text_embeddings
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


def check_texts(model: ModelMixin, config: TrainConfig, null_text: TextEmbeddings | None) -> None:
    """Checks that the model takes texts of the size that images have, and that all that it sees are of one length.

    Args:
        model: The built model.
        config: The run.
        null_text: The empty text's embeddings; None where all images see one text.

    Raises:
        UserError: They have other channels or tokens.
    """
    if null_text is not None:
        sizes = backbone_for(config.model).text_sizes(model)
        check_text_sizes(null_text, sizes, model=f"the {type(model).__name__}")
        seen, tokens = text_embeddings(config.model, sizes, null=null_text), len(null_text.prompt)
        if len(seen.prompt) != tokens:
            raise UserError(
                f"model.text_embeddings: {config.model.text_embeddings} has {len(seen.prompt)} text tokens, but the "
                f"images' own texts have {tokens}; encode it to as many"
            )


def check_latents(config: TrainConfig) -> None:
    """Checks that the run's autoencoder is the one that prepared latents were made with.

    Raises:
        ConfigError: The run has no autoencoder.
        UserError: It is another one, or its folder is missing or damaged.
    """
    folder = shard_folder(config.data)
    latents = None if folder is None else read_manifest(folder).latents
    if latents is None:
        return
    if config.model.latents != "vae" or config.model.vae is None:
        raise ConfigError(
            f"model.latents {config.model.latents}: the shards in {folder} hold an autoencoder's latents "
            "(hr_latents_mean, hr_latents_logvar, lr_latents_mean); set model.latents to vae and model.vae to that "
            "autoencoder's folder, or prepare shards without latents"
        )
    found = vae_sha256(Path(config.model.vae).expanduser())
    if found != latents.vae_sha256:
        raise UserError(
            f"model.vae: the autoencoder in {config.model.vae} (SHA-256 {found[:12]}...) is not the one that made the "
            f"latents in {folder} ({latents.vae_sha256[:12]}...); name that one's folder, or prepare shards with this "
            "one"
        )
