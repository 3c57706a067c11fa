"""Latents that a folder already has, as moments of the autoencoder's posterior."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from framer.config.model import ModelConfig
from framer.data.buckets import CropSize
from framer.data.images import read_image
from framer.data.layouts.base import GT, LATENT_HR, LATENT_LR, LR, LayoutRecord
from framer.data.layouts.check import CheckedFolder, read_latents
from framer.data.samples import sample_of_pair
from framer.data.shards.index import LATENTS
from framer.data.shards.latents import StoredLatents, of_vae_option
from framer.data.shards.manifest import LatentsDtype, LatentsRecord
from framer.errors import UserError
from framer.models.latents import VaeLatents, build_latents, vae_sha256

NO_VARIANCE: Final = -30.0
"""Log-variance of moments that stand for a single latent: draws from them differ from it by 3e-7."""
_DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16}
_MOST_ERROR: Final = 0.25
"""Deviation of kept latents from the autoencoder's own, of these latents' spread, beyond the posterior's."""


class KeptLatents:
    """Carries latents over that an autoencoder made of the same images, shifted and scaled as its config says.

    Such a latent is one draw from the posterior. Its mean and variance are lost, so it stands for the mean itself, with
    hardly any variance: training sees the same draw each time.

    Args:
        checked: The folder; it has latents.
        vae_folder: The autoencoder.
        device: Where it encodes the images that latents are compared with.
        dtype: How latents are stored.

    Attributes:
        record: What the manifest says of them.

    Raises:
        UserError: The autoencoder cannot be loaded, has other latents, or gives something else for the first sample.
    """

    def __init__(
        self, checked: CheckedFolder, vae_folder: Path, *, device: torch.device, dtype: LatentsDtype = "fp32"
    ) -> None:
        self._layout = layout = checked.folder.layout
        self._dtype = _DTYPES[dtype]
        try:
            space = build_latents(ModelConfig(latents="vae", vae=str(vae_folder)), device)
            sha256 = vae_sha256(vae_folder)
        except UserError as error:
            raise of_vae_option(error) from None
        assert isinstance(space, VaeLatents)
        found = (space.shape.channels, space.shape.downscale)
        expected = (layout.latent_channels, layout.latent_downscale)
        if found != expected:
            raise UserError(
                f"--vae {vae_folder} has latents of {found[0]} channels at 1/{found[1]} of the size; those of layout "
                f"{layout.name} have {expected[0]} at 1/{expected[1]}"
            )
        self._scale = space.scale
        self.record = LatentsRecord(dtype=dtype, channels=expected[0], downscale=expected[1], vae_sha256=sha256)
        self._compare(space, checked, device)

    @property
    def identity(self) -> str:
        """What the stored moments depend on, beside the folder's latents."""
        return f"{self.record.dtype}, {self._scale}, autoencoder SHA-256 {self.record.vae_sha256}"

    def files(self, record: LayoutRecord, size: CropSize) -> dict[str, bytes]:
        """The moments of one sample as its shard's file.

        Args:
            record: The sample.
            size: Height and width of its HR image.

        Raises:
            UserError: Its latents can no longer be read.
        """
        hr = self._raw(record.paths[LATENT_HR], size).to(self._dtype)
        lr = self._raw(record.paths[LATENT_LR], size).to(self._dtype)
        logvar = torch.full_like(hr, NO_VARIANCE)
        stored = StoredLatents(hr_mean=hr, hr_logvar=logvar, lr_mean=lr, lr_logvar=logvar.clone())
        return {LATENTS: save(stored._asdict())}

    def _raw(self, path: Path, size: CropSize) -> Tensor:
        return self._scale.undo(read_latents(self._layout, path, size).float())

    def _compare(self, space: VaeLatents, checked: CheckedFolder, device: torch.device) -> None:
        record, size = checked.folder.records[0], checked.records[0].size
        assert size is not None
        pair = [read_image(record.paths[subfolder]).astype(np.float32) / np.float32(255.0) for subfolder in (GT, LR)]
        sample = sample_of_pair(pair[0], pair[1], index=0, name=record.name)
        for subfolder, image in ((LATENT_HR, sample["hr"]), (LATENT_LR, sample["lr_upsampled"])):
            path, shown = record.paths[subfolder], GT if subfolder == LATENT_HR else "lr enlarged"
            moments = space.moments(image[None].to(device))
            error = (self._raw(path, size) - moments.mean[0].cpu()).square().mean().sqrt()
            most = 2 * moments.logvar.exp().mean().sqrt().cpu() + _MOST_ERROR * moments.mean.std().cpu()
            if error > most:
                raise UserError(
                    f"--keep-latents: {path} is not what --vae gives for {shown}, "
                    f"shifted and scaled: the mean error is {error:.3g}, with the right autoencoder it is below "
                    f"{most:.3g}. Leave --keep-latents away: the latents are made anew then"
                )
