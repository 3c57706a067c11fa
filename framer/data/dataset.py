"""Training samples as an endless seeded stream, and the fixed samples of held-out photographs."""

from __future__ import annotations

import logging
import operator
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from framer.data.buckets import BucketOrder, CropSize, nearest_bucket
from framer.data.degradations import degradation_preset
from framer.data.images import ImageError, image_name, image_size, read_image, resize_bicubic
from framer.data.samples import Crop, Sample, draw_quarter_turns, make_sample
from framer.errors import UserError
from framer.extras import require

__all__ = ["DEFAULT_MARGIN", "RealISRDataset", "Sample", "heldout_pairs"]

logger = logging.getLogger(__name__)

DEFAULT_MARGIN = 32
"""HR pixels around a crop that are degraded with it and then cut off."""

# First element of the seed of each kind of draw, so that no two kinds share a random stream.
_ORDER, _SAMPLE, _HELDOUT = 0, 1, 2


class RealISRDataset(Dataset[Sample]):
    """An endless stream of (HR, LR) crops out of photographs.

    Sample ``i`` belongs to epoch ``i // len(photographs)``, which visits every photograph once in an order
    drawn from (seed, epoch); its crop, flip and degradation are drawn from (seed, i) alone. So any sample can
    be made again by anyone: ``dataset[i]`` is the same on every rank, in every worker, after every resume.

    With `buckets`, each photograph belongs to the bucket whose aspect ratio is nearest to its own, and each bucket has
    an endless stream and epochs of its own, which :class:`~framer.data.buckets.BucketOrder` interleaves into one:
    ``dataset[i]`` is the stream in blocks of a single sample, and `sample` takes any other order.

    Args:
        paths: The photographs; each is decoded once here, to find broken files before training does.
        crop_size: Height and width of the HR crop in pixels, where there are no `buckets`; a multiple of `scale`.
        buckets: Heights and widths of HR crops in pixels, all of different aspect ratios; multiples of `scale`.
        scale: Factor between HR and LR.
        degradation: Name of a preset.
        margin: HR pixels around the crop that are degraded with it, where the photograph has them, and then
            cut off: a filter invents what lies beyond its input's border, and without the margin the model
            would learn these inventions on crops while it meets them only at the very edge of a photograph.
        seed: Seed of every draw; not negative.
        horizontal_flip: Whether a sample is mirrored, before it is degraded, with probability one half.
        quarter_turns: Whether a sample is also turned by 0, 90, 180 or 270 degrees, with equal probability; by 0 or 180
            where its bucket is not square.
        rescale: Sizes that photographs are used at, as factors in (0, 1], with equal probability: a photograph
            made smaller is sharper, and its details are of other sizes.
        colour_jitter: Whether a sample's channels are permuted and its gamma, brightness and saturation changed, so
            that a model of few photographs does not learn their colours by heart.
        on_broken: What to do with files that cannot be decoded or are smaller than the crop: `"error"`
            refuses them, naming each; `"skip"` logs each by name as a warning and leaves it out.
        cache_bytes: How many bytes of decoded photographs to keep in memory; the others are read from their
            files for each sample.

    Raises:
        UserError: There is no photograph, or there are broken ones (with `"skip"`: only broken ones); or
            `degradation` is no preset; or `crop_size` is no multiple of `scale`.
        ValueError: Another argument is out of range.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        crop_size: int,
        buckets: Sequence[tuple[int, int]] = (),
        scale: int = 4,
        degradation: str = "light",
        margin: int = DEFAULT_MARGIN,
        seed: int = 0,
        horizontal_flip: bool = True,
        quarter_turns: bool = False,
        rescale: Sequence[float] = (1.0,),
        colour_jitter: bool = False,
        on_broken: Literal["skip", "error"] = "error",
        cache_bytes: int = 1 << 30,
    ) -> None:
        self.buckets = [CropSize(*bucket) for bucket in buckets] or [CropSize(crop_size, crop_size)]
        for side in {side for bucket in self.buckets for side in bucket}:
            _check_arguments(side, scale, margin, seed)
        if on_broken not in ("skip", "error"):
            raise ValueError(f"on_broken must be 'skip' or 'error', got {on_broken!r}")
        if not rescale or not all(0 < factor <= 1 for factor in rescale):
            raise ValueError(f"rescale must hold factors above 0 and up to 1, got {list(rescale)}")
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must not be negative, got {cache_bytes}")
        self.scale = scale
        self.degradation = degradation_preset(degradation)
        self.margin = margin
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self.quarter_turns = quarter_turns
        self.rescale = tuple(rescale)
        self.colour_jitter = colour_jitter
        self.on_broken = on_broken
        self.cache_bytes = cache_bytes
        self._cache: dict[tuple[Path, float], npt.NDArray[np.uint8]] = {}
        self._cached_bytes = 0
        self._epochs: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}
        self._members: list[list[Path]] = [[] for _ in self.buckets]
        self.paths: list[Path] = self._usable([Path(path) for path in paths], on_broken)
        for bucket, count in zip(self.buckets, self.bucket_sizes, strict=True):
            if not count:
                logger.warning("no photograph is nearest to the aspect ratio of bucket %s", list(bucket))
        self._order = BucketOrder(self.bucket_sizes, block=1, seed=seed)
        _use_one_thread()

    def _usable(self, paths: list[Path], on_broken: Literal["skip", "error"]) -> list[Path]:
        if not paths:
            raise UserError("no photographs to train on: the list of files is empty")
        usable: list[Path] = []
        problems: list[str] = []
        for path in paths:
            try:
                image = read_image(path)
                bucket = nearest_bucket(image.shape[0], image.shape[1], self.buckets)
                for factor in self.rescale:
                    rescaled = _rescaled(image, factor)
                    _check_size(rescaled, self.buckets[bucket], path, factor)
                    self._keep(path, factor, rescaled)
            except ImageError as error:
                problems.append(str(error))
            else:
                usable.append(path)
                self._members[bucket].append(path)
        if problems and (on_broken == "error" or not usable):
            listing = "\n  ".join(problems)
            raise UserError(f"{len(problems)} of {len(paths)} photographs cannot be used:\n  {listing}")
        for problem in problems:
            logger.warning("skipped photograph %s", problem)
        return usable

    def _read(self, path: Path, factor: float) -> npt.NDArray[np.uint8]:
        image = self._cache.get((path, factor))
        if image is None:
            image = _rescaled(read_image(path), factor)
            self._keep(path, factor, image)
        return image

    def _keep(self, path: Path, factor: float, image: npt.NDArray[np.uint8]) -> None:
        if self._cached_bytes + image.nbytes <= self.cache_bytes:
            self._cache[path, factor] = image
            self._cached_bytes += image.nbytes

    def __len__(self) -> int:
        """Number of usable photographs, which is the length of an epoch; indices beyond it are valid."""
        return len(self.paths)

    @property
    def bucket_sizes(self) -> list[int]:
        """Number of photographs in each bucket."""
        return [len(members) for members in self._members]

    def photograph_at(self, bucket: int, place: int) -> Path:
        """The photograph at one place of a bucket's stream."""
        members = self._members[bucket]
        epoch, within = divmod(place, len(members))
        order = self._epochs.get(bucket)
        if order is None or order[0] != epoch:
            # Without the first bucket's number: the stream of square crops is as it was before there were buckets.
            rng = np.random.default_rng((_ORDER, self.seed, epoch) + ((bucket,) if bucket else ()))
            order = self._epochs[bucket] = (epoch, rng.permutation(len(members)))
        return members[int(order[1][within])]

    def __getitem__(self, index: int) -> Sample:
        """Makes sample `index`, any integer from 0 on."""
        index = operator.index(index)
        return self.sample(*self._order.locate(index), index)

    def sample(self, bucket: int, place: int, index: int) -> Sample:
        """Makes a sample of one bucket.

        Args:
            bucket: The bucket's number.
            place: Place in the bucket's own stream, which chooses the photograph.
            index: The sample's number in the whole stream, which its crop, flip and degradation are drawn from.
        """
        height, width = self.buckets[bucket]
        path = self.photograph_at(bucket, place)
        rng = np.random.default_rng((_SAMPLE, self.seed, index))
        image = self._read(path, self.rescale[int(rng.integers(len(self.rescale)))])
        crop = Crop(
            top=int(rng.integers(image.shape[0] - height + 1)),
            left=int(rng.integers(image.shape[1] - width + 1)),
            height=height,
            width=width,
            flip=self.horizontal_flip and bool(rng.random() < 0.5),
            quarter_turns=draw_quarter_turns(rng, square=height == width) if self.quarter_turns else 0,
        )
        return make_sample(
            image,
            crop,
            self.degradation,
            rng,
            scale=self.scale,
            margin=self.margin,
            index=index,
            name=image_name(path),
            colour_jitter=self.colour_jitter,
        )

    def __getstate__(self) -> dict[str, object]:
        # A worker that is started afresh fills its own cache as it goes, instead of receiving a gigabyte.
        return self.__dict__ | {"_cache": {}, "_cached_bytes": 0}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        _use_one_thread()


def heldout_pairs(
    paths: Sequence[str | os.PathLike[str]],
    *,
    crop_size: int,
    scale: int = 4,
    degradation: str = "light",
    seed: int = 0,
    crops_per_photo: int = 1,
) -> list[Sample]:
    """Makes the fixed evaluation samples of held-out photographs.

    The crops are the centre of each photograph, or spread evenly over it without overlap; none is mirrored.
    The degradation is drawn from (seed, file name, crop), so that a photograph's sample does not depend on
    which others are evaluated with it.

    Args:
        paths: The photographs.
        crop_size: Height and width of the HR crops in pixels; a multiple of `scale`.
        scale: Factor between HR and LR.
        degradation: Name of a preset.
        seed: Seed of every draw; not negative.
        crops_per_photo: Crops of each photograph.

    Returns:
        The samples, in the order of `paths`, `crops_per_photo` of each.

    Raises:
        UserError: There is no photograph, some cannot be decoded or are too small for their crops (each is named),
            `degradation` is no preset, or `crop_size` is no multiple of `scale`.
        ValueError: Another argument is out of range.
    """
    _check_arguments(crop_size, scale, DEFAULT_MARGIN, seed)
    if crops_per_photo < 1:
        raise ValueError(f"crops_per_photo must be at least 1, got {crops_per_photo}")
    if not paths:
        raise UserError("no held-out photographs: the list of files is empty")
    preset = degradation_preset(degradation)
    _use_one_thread()
    samples: list[Sample] = []
    problems: list[str] = []
    for path in map(Path, paths):
        try:
            image = read_image(path)
            crops = _spread_crops(image.shape[0], image.shape[1], crop_size, crops_per_photo, path)
        except ImageError as error:
            problems.append(str(error))
            continue
        for number, crop in enumerate(crops):
            sample = make_sample(
                image,
                crop,
                preset,
                heldout_draws(path, number, seed=seed),
                scale=scale,
                margin=DEFAULT_MARGIN,
                index=len(samples),
                name=image_name(path) if crops_per_photo == 1 else f"{image_name(path)}_{number}",
            )
            samples.append(sample)
    if problems:
        listing = "\n  ".join(problems)
        raise UserError(f"{len(problems)} of {len(paths)} held-out photographs cannot be used:\n  {listing}")
    return samples


def check_room(paths: Sequence[Path], *, crop_size: int, crops_per_photo: int) -> list[str]:
    """What `heldout_pairs` would refuse of photographs by their headers alone; a message for each that is refused."""
    problems: list[str] = []
    for path in paths:
        try:
            _spread_crops(*image_size(path), crop_size, crops_per_photo, path)
        except ImageError as error:
            problems.append(str(error))
    return problems


def heldout_draws(path: Path, number: int, *, seed: int) -> np.random.Generator:
    """What the degradation of one crop of a held-out photograph is drawn from: seed, file name and crop alone."""
    return np.random.default_rng((_HELDOUT, seed, zlib.crc32(os.fsencode(path.stem)), number))


def _spread_crops(height: int, width: int, crop_size: int, count: int, path: Path) -> list[Crop]:
    """Places `count` crops without overlap, spread evenly over an image."""
    most_rows, most_columns = height // crop_size, width // crop_size
    # Of the grids with room for all crops, the one with the fewest spare cells, then with the squarest cells.
    grids = [
        (rows * columns - count, abs(height / rows - width / columns), rows, columns)
        for rows in range(1, most_rows + 1)
        for columns in range(1, most_columns + 1)
        if rows * columns >= count
    ]
    if not most_rows * most_columns:
        raise ImageError(f"{path}: {width}x{height} pixels are too few for crops of {crop_size}x{crop_size} pixels")
    if not grids:
        raise ImageError(
            f"{path}: {width}x{height} pixels have room for {most_rows * most_columns} crops of "
            f"{crop_size}x{crop_size} pixels without overlap, not for {count}"
        )
    _, _, rows, columns = min(grids)
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    return [
        Crop(
            top=int((row + 0.5) * height / rows - crop_size / 2),
            left=int((column + 0.5) * width / columns - crop_size / 2),
            height=crop_size,
            width=crop_size,
        )
        for row, column in (cells[i * len(cells) // count] for i in range(count))
    ]


def _check_arguments(crop_size: int, scale: int, margin: int, seed: int) -> None:
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    if crop_size < scale or crop_size % scale:
        raise UserError(f"crop_size must be a multiple of scale={scale}, got {crop_size}")
    if margin < 0:
        raise ValueError(f"margin must not be negative, got {margin}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")


def _check_size(image: npt.NDArray[np.uint8], crop: CropSize, path: Path, factor: float) -> None:
    height, width = image.shape[:2]
    if height < crop.height or width < crop.width:
        rescaled = "" if factor == 1 else f", at {factor:g} of its size,"
        raise ImageError(
            f"{path}: {width}x{height} pixels{rescaled} are too few for crops of {crop.width}x{crop.height} pixels"
        )


def _rescaled(image: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    if factor == 1:
        return image
    size = (round(image.shape[0] * factor), round(image.shape[1] * factor))
    smaller = resize_bicubic(image.astype(np.float32), size)
    return np.clip(np.rint(smaller), 0, 255).astype(np.uint8)


def _use_one_thread() -> None:
    # Each rank and each worker is a process of its own, and OpenCV's thread pool does not survive a fork.
    require("cv2", extra="train").setNumThreads(1)
