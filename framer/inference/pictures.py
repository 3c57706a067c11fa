"""Image files with all that an upscaled one should keep: 16 bits, transparency, colour profile, EXIF."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from framer.data.deep_images import read_sixteen_bits, upright
from framer.data.images import ImageError, reading
from framer.errors import UserError
from framer.extras import require

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

Plane = npt.NDArray[np.float32]

FORMATS: Final = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""Formats that are written, by suffix."""

LARGEST_SIDE: Final = {"JPEG": 65500, "WEBP": 16383}
"""Largest height and width in pixels, of formats that have one."""

_TRANSPARENT: Final = frozenset({"PNG", "WEBP", "TIFF"})
_WITH_METADATA: Final = frozenset({"PNG", "JPEG", "WEBP", "TIFF"})
_ORIENTATION, _EXIF_IFD, _GPS_IFD, _INTEROPERABILITY = 0x0112, 0x8769, 0x8825, 0xA005
_EXIF_WIDTH, _EXIF_HEIGHT = 0xA002, 0xA003
_LARGEST_JPEG_EXIF: Final = 65533
_STRUCTURE: Final = frozenset(
    {*range(0x00FE, 0x010E), *range(0x0111, 0x011A), 0x011C, *range(0x013D, 0x015C), 0x02BC, 0x8773}
)
"""Tags with which a TIFF says how its own pixels are stored; its colour profile; XMP, which has an orientation too."""
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_GREY_MODES: Final = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})


@dataclass
class Picture:
    """An image and what belongs to it.

    Attributes:
        colour: ``[H, W, 3]`` float32 in [0, 1], not premultiplied; the three are equal where ``grey``.
        alpha: ``[H, W]`` float32 in [0, 1]; None where all is opaque and the file has no transparency.
        grey: Whether the file has one channel of colour.
        bits: Of a sample in the file: 8 or 16.
        profile: Of the file's colours, as ICC bytes; samples are taken as they are.
        exif: Without the orientation, which is applied.
        notes: What was changed beside, in words.
    """

    colour: Plane
    alpha: Plane | None = None
    grey: bool = False
    bits: int = 8
    profile: bytes | None = None
    exif: Exif | None = None
    notes: list[str] = field(default_factory=list)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file, without decoding it; in either order where it is turned.

    Raises:
        ImageError: The file is missing, empty or not an image.
    """
    with reading(path), require("PIL.Image", extra="train").open(path) as image:
        return image.height, image.width


def read_picture(path: Path) -> Picture:
    """Reads an image file.

    The EXIF orientation is applied. Palettes become RGB; other colour spaces, such as CMYK, are converted to RGB and
    noted. Of an animation the first frame is taken, and noted.

    Args:
        path: The file.

    Raises:
        ImageError: The file is missing, empty, truncated, not an image, of a sample type without a known range (32-bit
            integers and floats), or larger than Pillow's limit against decompression bombs.
    """
    with reading(path), require("PIL.Image", extra="train").open(path) as opened:
        return _decoded(opened, path)


def picture_of(image: Image) -> Picture:
    """An 8-bit image in memory, which is not changed; what it has beside its samples is taken as from a file.

    Raises:
        UserError: Samples of 16 or 32 bits, whose range is not known.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise UserError(f"an image of Pillow's mode {image.mode} has samples of no known range; convert it to L or RGB")
    image.load()
    return _of_eight_bits(image, _copied(image.getexif()), [])


def image_of(picture: Picture) -> Image:
    """An 8-bit image in memory: grey or RGB, with alpha where there is one.

    Profile and EXIF lie in its ``info``, as Pillow puts those of a file there.
    """
    image_module = require("PIL.Image", extra="train")
    samples = _quantised(picture.colour[..., :1] if picture.grey else picture.colour, picture.alpha, np.uint8)
    image: Image = image_module.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    exif = None if picture.exif is None else _exif_block(picture.exif, picture.colour.shape[:2])[0]
    image.info |= {name: value for name, value in (("icc_profile", picture.profile), ("exif", exif)) if value}
    return image


def _decoded(opened: Image, path: Path) -> Picture:
    notes: list[str] = []
    frames = getattr(opened, "n_frames", 1)
    if frames > 1:
        notes.append(f"the first of {frames} frames is taken")
    deep = read_sixteen_bits(opened, path)
    opened.load()
    exif = opened.getexif()
    if deep is not None:
        return _assembled(deep, bits=16, profile=opened.info.get("icc_profile"), exif=exif, notes=notes)
    if opened.mode in ("I", "F"):
        raise ImageError(
            f"{path}: 32-bit samples (Pillow mode {opened.mode!r}) have no known range; convert it to 8 or 16 bits"
        )
    return _of_eight_bits(opened, exif, notes)


def _of_eight_bits(image: Image, exif: Exif, notes: list[str]) -> Picture:
    """Of a loaded image; ``exif`` is changed, and ``notes`` continued."""
    profile = image.info.get("icc_profile")
    if image.mode not in _GREY_MODES | {"RGB", "RGBA", "RGBX", "RGBa", "P", "PA"}:
        notes.append(f"{image.mode} is converted to RGB")
        if profile is not None:
            notes.append(f"the colour profile of {image.mode} is left out")
        profile = None
    samples = upright(_eight_bit_samples(image), int(exif.get(_ORIENTATION, 1) or 1))
    return _assembled(samples, bits=8, profile=profile, exif=exif, notes=notes)


def _assembled(samples: npt.NDArray[Any], *, bits: int, profile: bytes | None, exif: Exif, notes: list[str]) -> Picture:
    """A picture of samples to which the orientation is applied; the tags that say it are removed from ``exif``."""
    colour, alpha = _split(samples)
    grey = colour.shape[2] == 1
    for tag in _STRUCTURE | {_ORIENTATION}:
        exif.pop(tag, None)
    return Picture(
        colour=np.repeat(colour, 3, axis=2) if grey else np.ascontiguousarray(colour),
        alpha=None if alpha is None else np.ascontiguousarray(alpha),
        grey=grey,
        bits=bits,
        profile=profile,
        exif=exif if len(exif) else None,
        notes=notes,
    )


def _copied(exif: Exif) -> Exif:
    """A copy, whose parts lie in it as dictionaries in the place of offsets into a file."""
    copy: Exif = require("PIL.Image", extra="train").Exif()
    for tag in exif:
        copy[tag] = dict(exif.get_ifd(tag)) if tag in (_EXIF_IFD, _GPS_IFD) else exif[tag]
    if _INTEROPERABILITY in (within := copy.get(_EXIF_IFD, {})):
        within[_INTEROPERABILITY] = dict(exif.get_ifd(_INTEROPERABILITY))
    return copy


def _eight_bit_samples(image: Image) -> npt.NDArray[np.uint8]:
    """Samples ``[H, W, C]`` of 1 to 4 channels: grey or RGB, and alpha."""
    grey, transparent = image.mode in _GREY_MODES, image.has_transparency_data
    mode = ("LA" if transparent else "L") if grey else ("RGBA" if transparent else "RGB")
    # A grey image whose transparency is one grey value does not convert to grey with alpha directly.
    converted = image.convert("RGBA").convert("LA") if mode == "LA" and image.mode != "LA" else image.convert(mode)
    samples: npt.NDArray[np.uint8] = np.asarray(converted)
    return samples[..., None] if samples.ndim == 2 else samples


def _split(samples: npt.NDArray[Any]) -> tuple[Plane, Plane | None]:
    """Colour ``[H, W, 1 or 3]`` and alpha ``[H, W]``, in [0, 1]."""
    largest = np.float32(np.iinfo(samples.dtype).max)
    colours = 1 if samples.shape[2] < 3 else 3
    colour = samples[..., :colours].astype(np.float32) / largest
    return colour, samples[..., colours].astype(np.float32) / largest if samples.shape[2] in (2, 4) else None


def check_format(size: tuple[int, int], suffix: str) -> None:
    """Refuses a size that a format cannot hold.

    Args:
        size: Height and width.
        suffix: Of the file.

    Raises:
        UserError: It is too large, or there is no such format.
    """
    kind = FORMATS.get(suffix.lower())
    if kind is None:
        raise UserError(f"cannot write {suffix or 'files without a suffix'}; known are {' '.join(FORMATS)}")
    limit = LARGEST_SIDE.get(kind)
    if limit is not None and max(size) > limit:
        raise UserError(f"{size[1]}x{size[0]} pixels are more than {kind} can hold ({limit} a side); write PNG instead")


def encode_picture(picture: Picture, suffix: str) -> tuple[bytes, list[str]]:
    """Makes the content of an image file.

    Args:
        picture: What to write.
        suffix: Of the file, which says the format. JPEG and WebP have quality 95.

    Returns:
        The content; and what the format cannot hold and was changed, in words.

    Raises:
        UserError: The format is not known, or cannot hold the size or the content.
    """
    check_format((picture.colour.shape[0], picture.colour.shape[1]), suffix)
    kind, notes = FORMATS[suffix.lower()], []
    alpha, colour = picture.alpha, picture.colour[..., :1] if picture.grey else picture.colour
    if alpha is not None and kind not in _TRANSPARENT:
        notes.append(f"{kind} has no transparency: it is laid over white")
        colour, alpha = colour * alpha[..., None] + (1 - alpha[..., None]), None
    if kind not in _WITH_METADATA and (picture.profile is not None or picture.exif is not None):
        notes.append(f"{kind} has no room for colour profile and EXIF: they are left out")
    sixteen = picture.bits == 16 and kind == "PNG"
    if picture.bits == 16 and not sixteen:
        notes.append(f"16-bit samples become 8-bit ones in {kind}; PNG keeps them")
    exif = None
    if kind in _WITH_METADATA and picture.exif is not None:
        exif, lost = _exif_block(picture.exif, picture.colour.shape[:2])
        notes += lost
        if exif is not None and kind == "JPEG" and len(exif) > _LARGEST_JPEG_EXIF:
            notes.append(f"EXIF of {len(exif)} bytes is more than JPEG can hold ({_LARGEST_JPEG_EXIF}): it is left out")
            exif = None
    samples = _quantised(colour, alpha, np.uint16 if sixteen else np.uint8)
    encode = _png_of_sixteen_bits if sixteen else _encoded
    try:
        return encode(samples, kind, picture.profile, exif), notes
    except MemoryError:
        raise
    # What Pillow's encoders cannot write surfaces as many kinds of errors, as what its decoders cannot read.
    except Exception as error:
        raise UserError(f"cannot be written as {kind}: {str(error) or type(error).__name__}") from error


def _quantised(colour: Plane, alpha: Plane | None, dtype: type[np.uint8] | type[np.uint16]) -> npt.NDArray[Any]:
    """Samples ``[H, W, C]``, rounded; a channel at a time, so that no second image of floats is made."""
    planes = [colour[..., channel] for channel in range(colour.shape[2])] + ([] if alpha is None else [alpha])
    samples = np.empty((*colour.shape[:2], len(planes)), dtype=dtype)
    for channel, plane in enumerate(planes):
        samples[..., channel] = np.rint(np.clip(plane, 0, 1) * np.float32(np.iinfo(dtype).max))
    return samples


def _encoded(samples: npt.NDArray[Any], kind: str, profile: bytes | None, exif: bytes | None) -> bytes:
    image_module = require("PIL.Image", extra="train")
    options: dict[str, Any] = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}}.get(kind, {})
    if kind in _WITH_METADATA:
        options |= {name: value for name, value in (("icc_profile", profile), ("exif", exif)) if value is not None}
    file = io.BytesIO()
    image_module.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples).save(file, format=kind, **options)
    return file.getvalue()


def _exif_block(exif: Exif, size: tuple[int, ...]) -> tuple[bytes | None, list[str]]:
    """The EXIF block, which says the new size where it said the old one; and what was left out of it, in words."""
    notes: list[str] = []
    try:
        within = _part(exif, _EXIF_IFD) if _EXIF_IFD in exif else {}
        for tag, length in ((_EXIF_WIDTH, size[1]), (_EXIF_HEIGHT, size[0])):
            if tag in within:
                within[tag] = length
        unwritable = _drop_unwritable(exif)
        if unwritable:
            notes.append(f"EXIF tags that cannot be written are left out: {', '.join(unwritable)}")
        block: bytes = exif.tobytes()
    # A tag of a kind that its number does not have surfaces as any of struct.error, TypeError, ValueError and more.
    except Exception as error:
        return None, [f"the EXIF cannot be written and is left out: {str(error) or type(error).__name__}"]
    return block, notes


def _part(exif: Exif, ifd: int) -> dict[int, Any]:
    """The tags of a part; a copy has them in it."""
    value = exif[ifd]
    return value if isinstance(value, dict) else exif.get_ifd(ifd)


def _drop_unwritable(exif: Exif) -> list[str]:
    """Removes the tags that Pillow reads but cannot write; their names."""
    names = require("PIL.ExifTags", extra="train").TAGS
    parts: list[tuple[Any, Any]] = [(exif, None)]
    parts += [(_part(exif, ifd), ifd) for ifd in (_EXIF_IFD, _GPS_IFD) if ifd in exif]
    dropped = []
    for tags, ifd in parts:
        for tag in list(tags):
            if tag not in (_EXIF_IFD, _GPS_IFD) and not _is_writable(tag, tags[tag], ifd):
                del tags[tag]
                dropped.append(str(names.get(tag, f"0x{tag:04x}")))
    return dropped


def _is_writable(tag: int, value: Any, ifd: int | None) -> bool:
    alone = require("PIL.Image", extra="train").Exif()
    try:
        alone[tag if ifd is None else ifd] = value if ifd is None else {tag: value}
        alone.tobytes()
    except Exception:  # as in _exif_block
        return False
    return True


def _png_of_sixteen_bits(samples: npt.NDArray[Any], kind: str, profile: bytes | None, exif: bytes | None) -> bytes:
    """A PNG file; Pillow writes no 16-bit colours, and OpenCV no metadata."""
    assert kind == "PNG"
    height, width, channels = samples.shape
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))]
    if profile is not None:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    if exif is not None:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    chunks.append((b"IDAT", b"".join(_deflated_rows(samples))))
    chunks.append((b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def _deflated_rows(samples: npt.NDArray[Any]) -> Iterator[bytes]:
    """Rows as PNG compresses them, each as its difference to the row above (filter 2)."""
    compressor = zlib.compressobj(6)
    above = np.zeros(samples[0].size * 2, dtype=np.uint8)
    for row in samples:
        current = row.astype(">u2").reshape(-1).view(np.uint8)
        yield compressor.compress(b"\2" + (current - above).tobytes())
        above = current
    yield compressor.flush()
