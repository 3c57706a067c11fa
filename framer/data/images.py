"""Image files: find, read, write and resize.

Pictures in memory are ``uint8 [H, W, 3]`` RGB as files hold them, or ``float32 [H, W, C]`` where they are
computed with.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from framer.data.deep_images import ORIENTATION, lay_over_white, read_sixteen_bits
from framer.errors import UserError
from framer.extras import require
from framer.files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
"""File name suffixes, in lower case, that `find_images` takes for images."""

# Tags of TIFF.
_WIDTH, _HEIGHT = 0x0100, 0x0101


class ImageError(UserError):
    """An image file cannot be read; the message names the file and what is wrong with it."""


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Lists the image files below a folder.

    Files are told by their suffix in any case (`IMAGE_SUFFIXES`). Hidden files and folders (a leading dot)
    are ignored; links to folders are followed, each folder once.

    Args:
        folder: The folder to search, with everything below it.

    Returns:
        The paths, each starting with `folder`, in sorted order.

    Raises:
        UserError: `folder` is missing, is not a folder, cannot be read, or holds no image.
    """
    root = Path(folder)
    if not root.exists():
        raise UserError(f"image folder {root} does not exist")
    if not root.is_dir():
        raise UserError(f"image folder {root} is not a folder; give the folder that holds the images")
    paths = sorted(path for path in _visible_files(root) if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"image folder {root} holds no image (looked for {suffixes} in it and below it)")
    return paths


def _visible_files(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"image folder {error.filename} cannot be read: {error.strerror}") from error

    visited: set[str] = set()
    for parent, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        # Links make cycles possible: a folder already seen under another name is not entered again.
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def image_name(path: Path) -> str:
    """What messages, tables and files call an image: its file's name without the suffix.

    A file's name can hold bytes that are no text, which Python keeps as half characters that nothing can write; they
    become "?".
    """
    return path.stem.encode(errors="replace").decode()


def read_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Reads an image file as 8-bit RGB.

    The EXIF orientation is applied; grey and palette images become RGB; transparency is laid over white;
    16-bit samples of PNG and TIFF are rounded to 8 bits, after transparency (of a TIFF that
    :func:`~framer.data.deep_images.read_sixteen_bits` does not read, the upper 8 bits are taken); of an animation the
    first frame is taken. Colour profiles are not applied: samples are taken as sRGB.

    Args:
        path: The file.

    Returns:
        ``uint8 [H, W, 3]``.

    Raises:
        ImageError: The file is missing, empty, truncated, not an image, of a sample type without a known
            range (32-bit integers and floats), or larger than Pillow's limit against decompression bombs.
    """
    image_module = require("PIL.Image", extra="train")
    operations = require("PIL.ImageOps", extra="train")
    path = Path(path)
    with reading(path), image_module.open(path) as opened:
        samples = read_sixteen_bits(opened, path)
        if samples is not None:
            return lay_over_white(samples)
        opened.load()
        return _as_rgb(operations.exif_transpose(opened), path)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width that `read_image` gives a file, told by its header alone.

    Raises:
        ImageError: The file is missing, empty or not an image; the rest of it may be damaged even so.
    """
    image_module = require("PIL.Image", extra="train")
    path = Path(path)
    with reading(path), image_module.open(path) as opened:
        # Of a TIFF the size as it is stored, for releases of Pillow differ in whether that which they name is turned.
        tags: Any = getattr(opened, "tag_v2", {})
        width, height = tags.get(_WIDTH, opened.size[0]), tags.get(_HEIGHT, opened.size[1])
        turned = int(opened.getexif().get(ORIENTATION, 1) or 1) in (5, 6, 7, 8)
        return (int(width), int(height)) if turned else (int(height), int(width))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Refuses an empty file, and turns whatever Pillow raises of a file into words.

    Raises:
        ImageError: The file is empty, or the body raised an exception.
    """
    image_module = require("PIL.Image", extra="train")
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty (0 bytes)")
        yield
    except ImageError:
        raise
    except image_module.UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image in a known format") from error
    except image_module.DecompressionBombError as error:
        raise ImageError(f"{path}: too many pixels to open safely: {error}") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
    # A damaged file surfaces from Pillow's decoders as any of SyntaxError, ValueError, struct.error,
    # IndexError, zlib.error and more: which one says nothing that the message would not.
    except Exception as error:
        raise ImageError(f"{path}: damaged image: {str(error) or type(error).__name__}") from error


def _as_rgb(image: Image, path: Path) -> npt.NDArray[np.uint8]:
    image_module = require("PIL.Image", extra="train")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{path}: 32-bit samples (Pillow mode {image.mode!r}) have no known range; convert the file to 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = image_module.new("RGBA", image.size, (255, 255, 255, 255))
        image = image_module.alpha_composite(white, image)
    # A copy, because the view on Pillow's buffer is read-only.
    return np.array(image.convert("RGB"), dtype=np.uint8)


def write_png(path: str | os.PathLike[str], image: npt.NDArray[np.uint8]) -> None:
    """Writes a PNG file that is either complete or absent.

    The picture is written beside `path`, flushed to the disk, and renamed into place; missing parent folders
    are made.

    Args:
        path: The file to write or replace.
        image: ``uint8 [H, W, 3]`` RGB.

    Raises:
        ValueError: `image` has another shape or dtype.
        OSError: The folder cannot be written to.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{path}: expected a uint8 [H, W, 3] image, got {image.dtype} {list(image.shape)}")
    image_module = require("PIL.Image", extra="train")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        image_module.fromarray(np.ascontiguousarray(image)).save(file, format="PNG")


def resize_bicubic(image: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Resizes with the antialiased bicubic of Pillow, the one bicubic of this package.

    The Keys kernel with a = -0.5, stretched by the scale factor when shrinking, sampled at pixel centres: the
    same weights as MATLAB's `imresize`, apart from the border, where Pillow renormalises the weights that
    fall inside while MATLAB mirrors the image. The result can overshoot the input's range; it is not clamped.

    Args:
        image: ``float32 [H, W, C]``.
        size: Target ``(height, width)`` in pixels.

    Returns:
        ``float32 [height, width, C]``.

    Raises:
        ValueError: `image` is not ``float32 [H, W, C]`` or `size` is not positive.
    """
    if image.dtype != np.float32 or image.ndim != 3:
        raise ValueError(f"expected a float32 [H, W, C] image, got {image.dtype} {list(image.shape)}")
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"expected a positive size (height, width), got {size}")
    image_module = require("PIL.Image", extra="train")
    resized = np.empty((height, width, image.shape[2]), dtype=np.float32)
    for channel in range(image.shape[2]):
        # Pillow has no multi-channel float mode; each channel is a picture of mode F.
        plane = image_module.fromarray(np.ascontiguousarray(image[..., channel]))
        resized[..., channel] = plane.resize((width, height), image_module.Resampling.BICUBIC)
    return resized
