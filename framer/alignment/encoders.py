"""Frozen encoders of clean images, from which REPA's students learn."""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framer.config.distillation import FramerConfig
from framer.errors import UserError
from framer.extras import require
from framer.features.errors import FeatureError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageEncoder(nn.Module, ABC):
    """A frozen encoder: evaluated without gradients, never saved, and no part of the model that trains.

    For one of your own, give its channels and override :meth:`features`.

    Args:
        channels: Z, those of its features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @abstractmethod
    def features(self, images: Tensor, height: int, width: int) -> Tensor:
        """Features ``[B, Z, h, w]`` of images; h and w are best the asked ones.

        Args:
            images: ``[B, 3, H, W]`` float32 in 0..1.
            height: Rows of the students' grid.
            width: Its columns.
        """

    @torch.no_grad()
    def forward(self, images: Tensor, height: int, width: int) -> Tensor:
        """Features ``[B, Z, height, width]`` float32, resized where the encoder's own grid is another.

        Args:
            images: ``[B, 3, H, W]`` in -1..1.
            height: Rows of the students' grid.
            width: Its columns.

        Raises:
            FeatureError: What the encoder gave is no map of its channels.
        """
        found = self.features((images.float() + 1) / 2, height, width)
        if found.ndim != 4 or found.shape[:2] != (len(images), self.channels):
            raise FeatureError(
                f"the encoder {type(self).__name__} gave features of shape {list(found.shape)}; expected "
                f"[{len(images)}, {self.channels}, h, w]"
            )
        if found.shape[-2:] != (height, width):
            found = F.interpolate(found.float(), size=(height, width), mode="bilinear", antialias=True)
        return found.float()


class PatchEncoder(ImageEncoder):
    """A vision transformer of transformers: its last layer's patch tokens.

    Images are resized so that the patches make the students' grid.

    Args:
        model: The loaded model.
        mean: Of each colour, which its inputs lack.
        std: Of each colour, by which its inputs are divided.

    Raises:
        UserError: It is no model of images in patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
    ):
        config: Any = model.config
        channels, patch = getattr(config, "hidden_size", None), getattr(config, "patch_size", None)
        if (
            getattr(model, "main_input_name", None) != "pixel_values"
            or type(channels) is not int
            or type(patch) is not int
        ):
            raise UserError(
                f"{type(model).__name__} is no encoder of images in patches: expected a vision transformer of "
                "transformers with hidden_size and patch_size, such as DINOv2"
            )
        super().__init__(channels)
        self.model = model.float().eval().requires_grad_(False)
        self.patch = patch
        # Models of learnt positions take one size of images unless they are told to interpolate.
        interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._arguments = {"interpolate_pos_encoding": True} if interpolates else {}
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Tensor, height: int, width: int) -> Tensor:
        """See :class:`ImageEncoder`.

        Raises:
            FeatureError: The encoder gave other than one feature a patch.
        """
        size = (height * self.patch, width * self.patch)
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        tokens: Tensor = self.model(pixel_values=(images - self.mean) / self.std, **self._arguments).last_hidden_state
        # A class token and registers come first.
        patches = tokens[:, tokens.shape[1] - height * width :]
        if tokens.ndim != 3 or patches.shape[1] != height * width:
            raise FeatureError(
                f"{type(self.model).__name__} gave features of shape {list(tokens.shape)} of images of {size[0]} x "
                f"{size[1]} pixels; expected {height * width} patches of {self.patch} pixels a side"
            )
        return patches.transpose(1, 2).reshape(len(images), -1, height, width)


def load_encoder(folder: str | Path) -> PatchEncoder:
    """Reads a vision model of transformers from its folder; no network, no code of its own, no pickles.

    Args:
        folder: As transformers' ``save_pretrained`` writes it, with safetensors; ``preprocessor_config.json`` may tell
            mean and deviation of its inputs, otherwise ImageNet's are taken.

    Raises:
        MissingExtraError: transformers is not installed.
        UserError: The folder is missing or damaged, or holds another kind of model.
    """
    path = Path(folder).expanduser()
    _check_folder(path)
    transformers = require("transformers", extra="repa")
    try:
        model = transformers.AutoModel.from_pretrained(
            path, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a damaged folder makes transformers raise
        raise UserError(f"framer.repa.encoder: cannot load {path}: {type(error).__name__}: {error}") from error
    return PatchEncoder(model, *_mean_and_std(path))


def repa_encoder(config: FramerConfig) -> PatchEncoder | None:
    """The encoder that ``framer.repa`` names; None with other methods.

    Raises:
        MissingExtraError: As :func:`load_encoder`.
        UserError: As there.
    """
    return load_encoder(config.repa.encoder) if config.enabled and config.repa.encoder is not None else None


def planned_encoder(folder: str | Path) -> PatchEncoder:
    """The same encoder without its weights, on the device of the ``torch.device`` context.

    Raises:
        MissingExtraError: As :func:`load_encoder`.
        UserError: As there.
    """
    path = Path(folder).expanduser()
    _check_folder(path)
    transformers = require("transformers", extra="repa")
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model = transformers.AutoModel.from_config(config)
    except Exception as error:  # as above
        raise UserError(f"framer.repa.encoder: cannot plan {path}: {type(error).__name__}: {error}") from error
    return PatchEncoder(model, *_mean_and_std(path))


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise UserError(
            f"framer.repa.encoder: {path / 'config.json'} not found; expected the folder of a vision model as "
            "transformers' save_pretrained writes it"
        )


def _mean_and_std(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    file = path / "preprocessor_config.json"
    if not file.is_file():
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        mean, std = (
            tuple(float(value) for value in content.get(key, default))
            for key, default in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
        )
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(
                f"image_mean {list(mean)} and image_std {list(std)}; expected three numbers, three above 0"
            )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"framer.repa.encoder: {file} is damaged: {error}") from None
    return mean, std
