"""The moments of an autoencoder's posterior that shards hold beside the images: making and reading them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from framer.config.model import ModelConfig
from framer.data.buckets import CropSize
from framer.data.shards.manifest import LatentsDtype, LatentsRecord
from framer.errors import UserError
from framer.extras import require
from framer.models.latents import Moments, VaeLatents, build_latents, latent_shape, vae_sha256

_DTYPES: Final[dict[LatentsDtype, torch.dtype]] = {"fp32": torch.float32, "fp16": torch.float16}
# Other versions of these can give other moments.
_LIBRARIES: Final = ("torch", "diffusers")
# On a CPU, work that is split among another number of threads gives other last bits.
_THREADS: Final = 4


class StoredLatents(NamedTuple):
    """Moments of the posteriors of a pair, ``[C, h, w]`` each, neither shifted nor scaled; the names are the file's."""

    hr_mean: Tensor
    hr_logvar: Tensor
    lr_mean: Tensor
    """Of the upscaled LR image."""
    lr_logvar: Tensor


class LatentEncoder:
    """Makes the moments of pairs, in float32.

    One image at a time and always with as many threads: the last bits of a result differ with the size of the batch and
    the number of threads, and the bytes of shards must depend on neither.

    Args:
        folder: The autoencoder, a diffusers ``AutoencoderKL``. Its weights are read when the first pair is encoded.
        dtype: How moments are stored.
        device: Where the autoencoder runs.

    Attributes:
        record: What the manifest says of the latents.
        made_from: What the moments depend on beside the images.

    Raises:
        UserError: The folder is missing, damaged or of another class.
    """

    def __init__(self, folder: Path, *, dtype: LatentsDtype, device: torch.device) -> None:
        self._config = ModelConfig(latents="vae", vae=str(folder))
        self._device = device
        try:
            shape, sha256 = latent_shape(self._config), vae_sha256(folder)
        except UserError as error:
            raise of_vae_option(error) from None
        self.record = LatentsRecord(dtype=dtype, channels=shape.channels, downscale=shape.downscale, vae_sha256=sha256)
        self.made_from: dict[str, Any] = {
            "vae": f"SHA-256 {sha256}",
            "latents_dtype": dtype,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        } | {name: str(require(name, extra="train").__version__) for name in _LIBRARIES}

    @cached_property
    def _latents(self) -> VaeLatents:
        try:
            built = build_latents(self._config, self._device)
        except UserError as error:
            raise of_vae_option(error) from None
        assert isinstance(built, VaeLatents)
        return built

    def check_size(self, size: CropSize) -> None:
        """Checks that images of a size have latents.

        Raises:
            UserError: A side is no multiple of the pixels of a latent.
        """
        if size.height % self.record.downscale or size.width % self.record.downscale:
            raise UserError(
                f"--vae: sides of {size.height} and {size.width} pixels are no multiples of the "
                f"{self.record.downscale} pixels of a latent; choose data.crop_size and data.buckets accordingly"
            )

    def encode(self, hr: Tensor, lr_upsampled: Tensor, where: str) -> bytes:
        """The moments of a pair as a safetensors file.

        Args:
            hr: ``float32 [3, H, W]`` in ``[-1, 1]``.
            lr_upsampled: The LR image, upscaled to the same size.
            where: The sample, for messages.

        Raises:
            UserError: The autoencoder gives numbers that are not finite or too large for the stored dtype; or its
                weights cannot be loaded.
        """
        with _fixed_threads():
            of_hr, of_lr = self._moments(hr), self._moments(lr_upsampled)
        stored = StoredLatents(of_hr.mean, of_hr.logvar, of_lr.mean, of_lr.logvar)
        files = {name: tensor[0].to(_DTYPES[self.record.dtype]).cpu() for name, tensor in stored._asdict().items()}
        for name, tensor in files.items():
            if not tensor.isfinite().all():
                raise UserError(
                    f"{where}: the autoencoder gives a {name} that is not finite or too large for "
                    f"{self.record.dtype}; choose another --latents-dtype, or another autoencoder"
                )
        content: bytes = save(files)
        return content

    def _moments(self, image: Tensor) -> Moments:
        # Like every choice of an algorithm that is measured or left open, TF32 would change the bytes.
        with torch.no_grad(), torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
            return self._latents.moments(image[None].to(self._device))


def read_latents(data: bytes, record: LatentsRecord, size: CropSize, where: str) -> StoredLatents:
    """Decodes the moments that a shard holds.

    Args:
        data: The file.
        record: What the manifest says of it.
        size: Size of the sample's HR image.
        where: Shard, sample and file, for messages.

    Returns:
        The moments, in float32.

    Raises:
        UserError: The file is damaged, or holds something else.
    """
    try:
        found = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{where} is damaged: {error}") from None
    shape = [record.channels, size.height // record.downscale, size.width // record.downscale]
    for name in StoredLatents._fields:
        if name not in found:
            raise UserError(f"{where} is damaged: it lacks {name}")
        tensor = found[name]
        if tensor.dtype != _DTYPES[record.dtype] or list(tensor.shape) != shape:
            raise UserError(
                f"{where} is damaged: {name} is {tensor.dtype} {list(tensor.shape)} instead of {record.dtype} {shape}"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{where} is damaged: {name} holds numbers that are not finite")
    return StoredLatents(*(found[name].float() for name in StoredLatents._fields))


@contextmanager
def _fixed_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def of_vae_option(error: UserError) -> UserError:
    """An error of loading an autoencoder, that names the command's option in the place of the setting."""
    return UserError(f"--vae: {str(error).removeprefix('model.vae: ')}")
