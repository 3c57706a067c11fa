"""Photographs, crops, degradations, and what a run is evaluated on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from framer.config.base import ConfigSection
from framer.config.types import NonEmptyText, NonNegativeInt, PositiveInt, integer

Degradation = Literal["heavy", "light", "stablesr"]


class DataConfig(ConfigSection):
    """Photographs, crops and degradations."""

    train: NonEmptyText = "bundled"
    """``bundled`` (the photographs that install with the package) or a folder of images, read recursively."""
    evaluation: NonEmptyText = "heldout"
    """``heldout`` (bundled photographs that nothing is trained or chosen on), ``validation`` (a bundled photograph to
    choose settings on) or a folder of images."""
    crop_size: PositiveInt = 64
    """Height and width of a training crop of the high-resolution photograph, in pixels."""
    scale: Annotated[Literal[2, 4, 8], BeforeValidator(integer)] = 4
    """Upscaling factor."""
    degradation: Degradation = "light"
    """Preset of the second-order degradation: ``heavy`` (Real-ESRGAN), ``light`` (PiSA-SR), ``stablesr``."""
    horizontal_flip: bool = True
    """Mirror half of the crops."""
    quarter_turns: bool = False
    """Turn crops by 0, 90, 180 or 270 degrees; for few photographs."""
    rescale: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [1.0]
    """Sizes that photographs are used at, as factors up to 1, with equal probability."""
    colour_jitter: bool = False
    """Permute the colour channels and change gamma, brightness and saturation; for few photographs."""
    on_broken: Literal["skip", "error"] = "error"
    """What to do with files that cannot be read or are smaller than the crop: each is named either way."""
    workers: NonNegativeInt = 1
    """Processes that degrade crops while the model trains; 0 degrades in the training process."""

    @model_validator(mode="after")
    def _crop_is_a_multiple_of_scale(self) -> DataConfig:
        if self.crop_size % self.scale:
            raise ValueError(f"crop_size {self.crop_size} is not a multiple of scale {self.scale}")
        return self


class EvaluationConfig(ConfigSection):
    """Held-out photographs: sample sheets, PSNR and SSIM."""

    crop_size: Annotated[int, Field(ge=11)] = 256
    """Height and width of an evaluation crop, in pixels; SSIM needs 11."""
    crops_per_photo: PositiveInt = 1
    seed: NonNegativeInt = 0
    """Seed of the degradation and of the initial noise; independent of ``seed`` so that runs compare."""
    num_inference_steps: PositiveInt = 4
    """Euler steps of the flow from noise to image."""
    tile_overlap: Annotated[float, Field(ge=0, le=0.5)] = 0.25
    """Part of a tile that its neighbour covers too; tiles have the size of a training crop."""
