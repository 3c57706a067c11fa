"""Pairs to be written into shards, wherever they come from."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from framer.config.types import NonNegativeInt
from framer.data.buckets import CropSize
from framer.data.manifests import Record
from framer.data.samples import Sample, sample_of_pair
from framer.data.shards.index import HR, LR, META
from framer.data.shards.manifest import LatentsRecord, LicenceRecord, TextsRecord
from framer.errors import UserError
from framer.extras import require


class EncodedPair(NamedTuple):
    """A pair as the files that a shard keeps of it."""

    number: int
    """Its number among all pairs of the source, which becomes its key."""
    files: dict[str, bytes]
    """Content by member, see :data:`~framer.data.shards.index.MEMBERS`."""


class PairMeta(Record):
    """What a shard says of a pair."""

    index: NonNegativeInt
    """Its number among all pairs of the source."""
    name: str
    """The photograph's name."""
    caption: str | None
    """The photograph's text, where there is one."""
    text: NonNegativeInt | None
    """Row of its embeddings in the text store, where there is one."""


class PairSource(Protocol):
    """Pairs that can be made in any order and in any process; it is sent to processes that make them.

    Attributes:
        scale: Factor between HR and LR.
        degradation: Name of the preset that the LR images were made with.
        made_from: Everything that the files depend on, as JSON values under names that tell a user what differs.
        buckets: Sizes of HR images, each once.
        rows: Number of pairs in each bucket. Rows count on from bucket to bucket, and shards hold them in this order.
        latents: What the source's own latents are; None where it has none.
        texts: The text store that the pairs' rows of text are of; None where they have none.
        licences: Under which terms the photographs are used.
        photographs: The list of them, see ``framer.data.shards.photographs``; None where pairs are made of no
            photographs here.
    """

    scale: int
    degradation: str
    made_from: dict[str, Any]
    buckets: list[CropSize]
    rows: list[int]
    latents: LatentsRecord | None
    texts: TextsRecord | None
    licences: list[LicenceRecord]
    photographs: bytes | None

    def __len__(self) -> int:
        """Number of pairs."""

    def encoded(self, row: int) -> EncodedPair:
        """Makes the pair at ``row``.

        Raises:
            UserError: What it is made of cannot be read.
        """


def encoded_pair(
    number: int, *, hr: bytes, lr: bytes, name: str, caption: str | None = None, text: int | None = None
) -> EncodedPair:
    """A pair as files.

    Args:
        number: Its number among all pairs of the source.
        hr: The HR image as a PNG file, see `png_bytes`.
        lr: The LR image likewise.
        name: The photograph's name.
        caption: The photograph's text, where there is one.
        text: Its row in the text store, where there is one.
    """
    meta = json.dumps({"index": number, "name": name, "caption": caption, "text": text}, ensure_ascii=False)
    # A file's name can hold bytes that are no text, which Python keeps as half characters; they become "?".
    return EncodedPair(number, {HR: hr, LR: lr, META: meta.encode(errors="replace")})


def png_bytes(pixels: npt.NDArray[np.uint8]) -> bytes:
    """An image ``uint8 [H, W, 3]`` as a PNG file."""
    buffer = io.BytesIO()
    require("PIL.Image", extra="train").fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def sample_of_files(
    files: Mapping[str, bytes],
    size: CropSize,
    *,
    scale: int,
    index: int,
    flip: bool = False,
    quarter_turns: int = 0,
    where: str = "a new pair",
) -> Sample:
    """The images that training sees of a pair's files.

    Args:
        files: As a shard keeps them.
        size: Size of the HR image.
        scale: Factor between HR and LR.
        index: The sample's `index`.
        flip: Whether both images are mirrored left to right.
        quarter_turns: Counter-clockwise quarter turns of both, after the mirroring.
        where: Shard and sample, for messages.

    Raises:
        UserError: A file is damaged, or an image has another size.
    """
    hr = _decode_png(files[HR], size, f"{where}: {HR}")
    lr = _decode_png(files[LR], CropSize(size.height // scale, size.width // scale), f"{where}: {LR}")
    name = read_meta(files[META], f"{where}: {META}").name
    if flip:
        hr, lr = hr[:, ::-1], lr[:, ::-1]
    hr, lr = np.rot90(hr, quarter_turns), np.rot90(lr, quarter_turns)
    return sample_of_pair(_as_unit_floats(hr), _as_unit_floats(lr), index=index, name=name)


def read_meta(data: bytes, where: str) -> PairMeta:
    """Decodes what a shard says of a pair.

    Args:
        data: The file.
        where: Shard, sample and file, for messages.

    Raises:
        UserError: It is damaged.
    """
    try:
        return PairMeta.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where} is damaged: {f'{place}: ' if place else ''}{first['msg']}") from None


def _decode_png(data: bytes, size: CropSize, where: str) -> npt.NDArray[np.uint8]:
    """Decodes a PNG file that a shard holds.

    Args:
        data: The file.
        size: Height and width that it should have.
        where: Shard, sample and file, for messages.

    Returns:
        ``uint8 [H, W, 3]``.

    Raises:
        UserError: It is damaged or has another size.
    """
    image_module = require("PIL.Image", extra="train")
    try:
        with image_module.open(io.BytesIO(data), formats=("PNG",)) as opened:
            image = np.array(opened.convert("RGB"), dtype=np.uint8)
    except image_module.UnidentifiedImageError:
        raise UserError(f"{where} does not decode: it is not a PNG file") from None
    except Exception as error:  # whatever a damaged file makes the decoder raise
        raise UserError(f"{where} does not decode: {str(error) or type(error).__name__}") from None
    if image.shape[:2] != size:
        raise UserError(
            f"{where} has {image.shape[1]}x{image.shape[0]} pixels instead of the {size.width}x{size.height} of its "
            "shard"
        )
    return image


def _as_unit_floats(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """8-bit samples as numbers from 0 to 1."""
    return pixels.astype(np.float32) / np.float32(255.0)
