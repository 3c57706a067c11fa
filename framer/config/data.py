"""Photographs, crops, degradations, and what a run is evaluated on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from framer.config.base import ConfigSection
from framer.config.types import Fraction, NonEmptyText, NonNegativeInt, PositiveInt, integer

Degradation = Literal["heavy", "light", "stablesr"]


class DataConfig(ConfigSection):
    """Photographs, crops and degradations."""

    train: NonEmptyText = "bundled"
    """``bundled`` (the photographs that install with the package), a folder of images, read recursively, or a folder of
    shards that ``framer prepare`` wrote."""
    evaluation: NonEmptyText = "heldout"
    """``heldout`` (bundled photographs that nothing is trained or chosen on), ``validation`` (a bundled photograph to
    choose settings on) or a folder of images."""
    shards_fingerprint: NonEmptyText | None = None
    """Fingerprint of the shards that ``train`` names; null takes it from their manifest. So the resolved configuration
    and a run's checkpoints say which shards they are of, and no others are taken for them."""
    photographs_fingerprint: NonEmptyText | None = None
    """Of photographs: their number and a digest of their names and sizes in bytes; null takes it from ``train``. As
    ``shards_fingerprint``."""
    texts: NonEmptyText | None = None
    """A text store, which gives each photograph of ``train`` the embeddings of its own text; null: all images see one,
    ``model.text_embeddings``. Shards that were prepared with texts have them already."""
    texts_fingerprint: NonEmptyText | None = None
    """Fingerprint of ``texts``, or of the texts in shards; null takes it from the store. As ``shards_fingerprint``."""
    null_text_probability: Fraction = 0.0
    """How often a training sample sees the empty text in the place of its own; 0.2 in DiT4SR, 0.5 in PiSA-SR."""
    crop_size: PositiveInt = 64
    """Height and width of a training crop of the high-resolution photograph, in pixels."""
    scale: Annotated[Literal[2, 4, 8], BeforeValidator(integer)] = 4
    """Upscaling factor."""
    buckets: list[Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]] = []
    """Sizes ``[height, width]`` of training crops, of different aspect ratios: each photograph is cropped to the one
    whose aspect ratio is nearest to its own. Empty: all crops are squares of ``crop_size``, which stays the tile of
    inference either way."""
    degradation: Degradation = "light"
    """Preset of the second-order degradation: ``heavy`` (Real-ESRGAN), ``light`` (PiSA-SR), ``stablesr``."""
    horizontal_flip: bool = True
    """Mirror half of the crops."""
    quarter_turns: bool = False
    """Turn crops by 0, 90, 180 or 270 degrees, those that are not square by 0 or 180; for few photographs."""
    rescale: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [1.0]
    """Sizes that photographs are used at, as factors up to 1, with equal probability."""
    colour_jitter: bool = False
    """Permute the colour channels and change gamma, brightness and saturation; for few photographs."""
    on_broken: Literal["skip", "error"] = "error"
    """What to do with files that cannot be read or are smaller than the crop: each is named either way."""
    workers: NonNegativeInt = 1
    """Processes that degrade crops while the model trains; 0 degrades in the training process."""

    @field_validator("buckets")
    @classmethod
    def _buckets_can_be_told_apart(cls, buckets: list[list[int]], info: ValidationInfo) -> list[list[int]]:
        scale = info.data.get("scale", 1)  # 1 where the scale itself was refused
        for place, (height, width) in enumerate(buckets):
            if height % scale or width % scale:
                raise ValueError(f"[{height}, {width}] is not a multiple of scale {scale}")
            for other_height, other_width in buckets[:place]:
                if height * other_width == width * other_height:
                    raise ValueError(
                        f"[{other_height}, {other_width}] and [{height}, {width}] have the same aspect ratio, so no "
                        "photograph is nearer to one of them; keep one"
                    )
        return buckets

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
    """Crops of each photograph: its centre, or several spread evenly over it, without overlap; it must have room for
    them."""
    allow_training_photographs: bool = False
    """Take evaluation photographs that are trained on too, which are refused otherwise: for a run that is meant to
    learn them by heart."""
    seed: NonNegativeInt = 0
    """Seed of the degradation and of the initial noise; independent of ``seed`` so that runs compare."""
    num_inference_steps: PositiveInt = 4
    """Steps from noise to image: Euler steps of ``flow_matching``, DDIM steps of ``diffusion``; ``one_step`` takes
    one whatever is said here."""
    tile_overlap: Annotated[float, Field(ge=0, le=0.5)] = 0.25
    """Part of a tile that its neighbour covers too; tiles have the size of a training crop."""
