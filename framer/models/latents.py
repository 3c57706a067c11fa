"""The space that is diffused."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framer.config.model import ModelConfig
from framer.errors import UserError
from framer.models.folders import read_model_config
from framer.models.weights import WEIGHTS_FILE, has_weights, weight_files
from framer.seeding import normal_per_sample

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

DETAIL_WINDOW = 9
"""Height and width of the local mean, in pixels: about two low-resolution pixels at scale 4."""

_WITHOUT_EFFECT_ON_MOMENTS = (
    "out_channels",
    "up_block_types",
    "use_post_quant_conv",
    "sample_size",
    "scaling_factor",
    "shift_factor",
    "latents_mean",
    "latents_std",
    "force_upcast",
)
"""Settings of an autoencoder that its posterior does not depend on."""
_HASH_CHUNK = 1 << 20


class LatentShape(NamedTuple):
    """Sizes of a latent space."""

    channels: int
    """Of the latents."""
    reference_channels: int
    """Of what is known of the image at the latents' resolution."""
    condition_channels: int
    """Of what the model sees of that."""
    downscale: int
    """Pixels a side of one latent pixel."""


class Moments(NamedTuple):
    """An autoencoder's posterior of a batch of images: what its encoder gives, neither shifted nor scaled."""

    mean: Tensor
    """``[B, C, h, w]`` float32."""
    logvar: Tensor
    """``[B, C, h, w]`` float32."""


@dataclass(frozen=True)
class LatentScale:
    """How an autoencoder's latents are shifted and scaled, as its config says: ``(z - shift) * scale``.

    Attributes:
        shift: ``shift_factor``, or of each channel ``latents_mean``.
        scale: ``scaling_factor``, or of each channel ``scaling_factor / latents_std``.
    """

    shift: float | tuple[float, ...]
    scale: float | tuple[float, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LatentScale:
        """That of an ``AutoencoderKL``'s config.

        Raises:
            UserError: ``latents_mean`` and ``latents_std`` are not both there, once for each channel, or there is a
                ``shift_factor`` too, with which pipelines of diffusers do not agree on what they mean.
        """
        scale, shift = float(config["scaling_factor"]), float(config.get("shift_factor") or 0.0)
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is None and deviation is None:
            return cls(shift, scale)
        channels = config["latent_channels"]
        if mean is None or deviation is None or {len(mean), len(deviation)} != {channels} or shift or 0 in deviation:
            raise UserError(
                f"model.vae: config.json has latents_mean {mean}, latents_std {deviation} and shift_factor {shift:g}; "
                f"expected the first two alone, {channels} numbers each, or neither"
            )
        return cls(tuple(map(float, mean)), tuple(scale / each for each in deviation))

    def apply(self, latents: Tensor) -> Tensor:
        """Raw latents ``[..., C, h, w]`` as they are diffused."""
        return (latents - _per_channel(self.shift, latents)) * _per_channel(self.scale, latents)

    def undo(self, latents: Tensor) -> Tensor:
        """Raw latents, which the decoder takes, from those that are diffused, ``[..., C, h, w]``."""
        return latents / _per_channel(self.scale, latents) + _per_channel(self.shift, latents)

    def __str__(self) -> str:
        scale, shift = (
            f"{value:g}" if isinstance(value, float) else "[" + ", ".join(f"{each:g}" for each in value) + "]"
            for value in (self.scale, self.shift)
        )
        return f"scale {scale}, shift {shift}"


def _per_channel(value: float | tuple[float, ...], like: Tensor) -> float | Tensor:
    return value if isinstance(value, float) else torch.tensor(value, device=like.device).view(-1, 1, 1)


class LatentSpace(ABC):
    """Maps images to what the model diffuses and back.

    Attributes:
        shape: Sizes.
        vae: The frozen autoencoder, where there is one.
    """

    shape: LatentShape
    vae: AutoencoderKL | None = None

    @abstractmethod
    def encode(self, image: Tensor, upsampled: Tensor, *, indices: Sequence[int], seed: int) -> Tensor:
        """Latents ``[B, C, h, w]`` float32 of ``image`` ``[B, 3, H, W]`` in [-1, 1].

        Args:
            image: The high-resolution image.
            upsampled: Its low-resolution version, bicubically upscaled to the same size.
            indices: The samples' indices, length B; where latents are drawn, the draws depend on them and ``seed``.
            seed: Seed of the draws.
        """

    @abstractmethod
    def reference(self, upsampled: Tensor) -> Tensor:
        """What is known of the image at the latents' resolution, ``[B, reference_channels, h, w]``.

        Args:
            upsampled: The low-resolution image, bicubically upscaled, ``[B, 3, H, W]`` in [-1, 1].
        """

    def draw(self, moments: Moments, *, indices: Sequence[int], seed: int) -> Tensor:
        """What :meth:`encode` gives, from the posterior's moments that were computed before.

        Args:
            moments: Of the high-resolution image.
            indices: As in :meth:`encode`.
            seed: As in :meth:`encode`.

        Raises:
            ValueError: There is no autoencoder in the space.
        """
        raise ValueError("moments are of an autoencoder's latents; this latent space has no autoencoder")

    def reference_of_mean(self, mean: Tensor, upsampled: Tensor) -> Tensor:
        """What :meth:`reference` gives, from the mean that was computed before.

        Args:
            mean: Of the autoencoder's posterior of the upscaled image, ``[B, C, h, w]`` float32.
            upsampled: As in :meth:`reference`.

        Raises:
            ValueError: There is no autoencoder in the space.
        """
        raise ValueError("moments are of an autoencoder's latents; this latent space has no autoencoder")

    @abstractmethod
    def condition(self, reference: Tensor) -> Tensor:
        """What the model sees of the low-resolution image, ``[B, condition_channels, h, w]``.

        Args:
            reference: As :meth:`reference` gives it, whole or a tile.
        """

    @abstractmethod
    def of_upsampled(self, upsampled: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]`` float32 whose image is ``upsampled`` ``[B, 3, H, W]``; nothing is drawn."""

    @abstractmethod
    def decode(self, latents: Tensor, upsampled: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]``, clamped to [-1, 1]; the inverse of :meth:`encode`. Differentiable.

        Infinities become NaN, so that a model that is broken is told from one that makes black and white.
        """


@dataclass(frozen=True)
class ImageLatents(LatentSpace):
    """Images themselves.

    ``pixel`` diffuses the image itself. ``residual`` diffuses ``scale * (image - upsampled)``, what the bicubic
    upscaling lacks (as SRDiff, arXiv 2104.14951): a model that predicts zero already equals bicubic.

    Args:
        kind: ``pixel`` or ``residual``.
        scale: Factor of the residual; about one over its standard deviation.
    """

    kind: Literal["pixel", "residual"] = "residual"
    scale: float = 6.0

    @property
    def shape(self) -> LatentShape:  # type: ignore[override]
        """Three channels, as large as the image; the condition of ``residual`` has six."""
        return LatentShape(3, 3, 6 if self.kind == "residual" else 3, 1)

    def encode(self, image: Tensor, upsampled: Tensor, *, indices: Sequence[int] = (), seed: int = 0) -> Tensor:
        """The image or the residual; nothing is drawn."""
        return (image - upsampled) * self.scale if self.kind == "residual" else image

    def reference(self, upsampled: Tensor) -> Tensor:
        """The upscaled image itself."""
        return upsampled

    def condition(self, reference: Tensor) -> Tensor:
        """The upscaled image; for ``residual`` also its own detail.

        That is the difference to its local mean, on the scale of the latents. In the image itself this detail, from
        which the residual is to be guessed, is small against the mean colour and against the noise beside it, and a
        small model learns to use it only late.
        """
        if self.kind == "pixel":
            return reference
        mean = F.avg_pool2d(reference, DETAIL_WINDOW, 1, DETAIL_WINDOW // 2, count_include_pad=False)
        return torch.cat([reference, self.scale * (reference - mean)], dim=1)

    def of_upsampled(self, upsampled: Tensor) -> Tensor:
        """The upscaled image; as a residual, zeros."""
        return torch.zeros_like(upsampled) if self.kind == "residual" else upsampled

    def decode(self, latents: Tensor, upsampled: Tensor) -> Tensor:
        """The latents, or the upscaled image with the residual added."""
        image = upsampled + latents / self.scale if self.kind == "residual" else latents
        return _clamped(image)


class VaeLatents(LatentSpace):
    """Latents of a frozen autoencoder, shifted and scaled as its config says.

    Args:
        vae: The autoencoder; put into evaluation mode and frozen.

    Attributes:
        scale: How its latents are shifted and scaled.

    Raises:
        UserError: Its config contradicts itself, see :meth:`LatentScale.of`.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae: AutoencoderKL = vae.eval().requires_grad_(False)
        self.shape = _vae_shape(dict(vae.config))
        self.scale = LatentScale.of(dict(vae.config))

    @torch.no_grad()
    def encode(self, image: Tensor, upsampled: Tensor, *, indices: Sequence[int], seed: int) -> Tensor:
        """A draw from the autoencoder's posterior."""
        return self.draw(self.moments(image), indices=indices, seed=seed)

    @torch.no_grad()
    def moments(self, image: Tensor) -> Moments:
        """The posterior of ``image`` ``[B, 3, H, W]`` in [-1, 1]."""
        posterior = self.vae.encode(image.to(self.vae.dtype)).latent_dist
        return Moments(posterior.mean.float(), posterior.logvar.float())

    def draw(self, moments: Moments, *, indices: Sequence[int], seed: int) -> Tensor:
        """A draw from the posterior with these moments."""
        noise = normal_per_sample(moments.mean.shape[1:], list(indices), seed, "posterior").to(moments.mean.device)
        return self.scale.apply(moments.mean + torch.exp(0.5 * moments.logvar) * noise)

    def reference(self, upsampled: Tensor) -> Tensor:
        """The posterior's mean of the upscaled image."""
        return self.reference_of_mean(self.moments(upsampled).mean, upsampled)

    def reference_of_mean(self, mean: Tensor, upsampled: Tensor) -> Tensor:
        """The mean itself, shifted and scaled."""
        return self.scale.apply(mean)

    def condition(self, reference: Tensor) -> Tensor:
        """The latents of the upscaled image."""
        return reference

    def of_upsampled(self, upsampled: Tensor) -> Tensor:
        """The posterior's mean."""
        return self.reference(upsampled)

    def decode(self, latents: Tensor, upsampled: Tensor) -> Tensor:
        """The decoded image."""
        image: Tensor = self.vae.decode(self.scale.undo(latents).to(self.vae.dtype)).sample
        return _clamped(image.float())


def _clamped(image: Tensor) -> Tensor:
    """A copy; its memory is all that is taken."""
    return torch.nan_to_num(image, nan=math.nan, posinf=math.nan, neginf=math.nan).clamp_(-1, 1)


def latent_shape(config: ModelConfig) -> LatentShape:
    """Sizes of the space that ``model.latents`` names, without reading weights.

    Raises:
        UserError: The autoencoder's folder is missing, damaged or of another class.
    """
    if config.latents != "vae":
        return _image_latents(config).shape
    return _vae_shape(_vae_config(config))


def build_latents(config: ModelConfig, device: torch.device) -> LatentSpace:
    """The space that ``model.latents`` names.

    Args:
        config: Names it.
        device: Where an autoencoder goes; on ``meta`` its weights are not read.

    Raises:
        UserError: The autoencoder's folder is missing, incomplete, damaged or of another class.
    """
    if config.latents != "vae":
        return _image_latents(config)
    from diffusers import AutoencoderKL

    settings, folder = _vae_config(config), _vae_folder(config)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.vae_precision]
    if device.type == "meta":
        with device:
            # Not diffusers' own method, which warns about parameters that from_pretrained would keep in float32.
            return VaeLatents(nn.Module.to(AutoencoderKL.from_config(settings), dtype))
    if not has_weights(folder):
        raise UserError(f"model.vae: {folder / WEIGHTS_FILE} not found; expected a folder written by save_pretrained")
    try:
        vae = AutoencoderKL.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True)
    except Exception as error:  # whatever a damaged file makes diffusers raise
        raise UserError(f"model.vae: cannot load {folder}: {type(error).__name__}: {error}") from error
    return VaeLatents(vae.to(device))


def vae_sha256(folder: Path) -> str:
    """SHA-256, in hexadecimal digits, of what an autoencoder's moments depend on: its encoder's settings and weights.

    Args:
        folder: A diffusers folder of an ``AutoencoderKL``. Its name and its latents' scale do not change the result;
            weights that were saved anew, in another precision or in other parts, do.

    Raises:
        UserError: The folder is missing, incomplete, damaged or of another class.
    """
    from diffusers import AutoencoderKL

    settings = _read_vae_config(folder)
    # What a config leaves out has the default of the class.
    parameters = list(inspect.signature(AutoencoderKL.__init__).parameters.values())[1:]
    relevant = {p.name: settings.get(p.name, p.default) for p in parameters if p.name not in _WITHOUT_EFFECT_ON_MOMENTS}
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode())
    for path in weight_files(folder, key="model.vae"):
        try:
            with path.open("rb") as file:
                while chunk := file.read(_HASH_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise UserError(f"model.vae: cannot read {path}: {error.strerror or error}") from None
    return digest.hexdigest()


def _image_latents(config: ModelConfig) -> ImageLatents:
    assert config.latents != "vae"
    return ImageLatents(config.latents, config.latents_scale if config.latents == "residual" else 1.0)


def _vae_folder(config: ModelConfig) -> Path:
    assert config.vae is not None
    return Path(config.vae).expanduser()


def _vae_config(config: ModelConfig) -> dict[str, object]:
    return _read_vae_config(_vae_folder(config))


def _read_vae_config(folder: Path) -> dict[str, object]:
    settings = read_model_config(folder, key="model.vae")
    if settings.get("_class_name") != "AutoencoderKL":
        raise UserError(f"model.vae: {folder} holds {settings.get('_class_name')}; expected AutoencoderKL")
    return settings


def _vae_shape(settings: dict[str, object]) -> LatentShape:
    channels, stages = settings.get("latent_channels"), settings.get("block_out_channels")
    if not isinstance(channels, int) or not isinstance(stages, list | tuple):
        raise UserError("model.vae: config.json lacks latent_channels or block_out_channels")
    return LatentShape(channels, channels, channels, 2 ** (len(stages) - 1))
