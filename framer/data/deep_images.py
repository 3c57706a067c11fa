"""Image files of 16 bits a sample, of whose colours Pillow keeps the upper 8 bits alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from framer.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION: Final = 0x0112
"""The tag of EXIF and TIFF that says how an image is turned."""
_COLOURS: Final = {
    f"{channels};16{order}": channels for channels in ("LA", "RGB", "RGBA", "RGBX") for order in ("", "B", "L", "N")
}
"""Channels by Pillow's names of how files store samples of 16 bits."""
_BITS_PER_SAMPLE, _PLANAR_CONFIGURATION = 0x0102, 0x011C


def read_sixteen_bits(opened: Image, path: Path) -> npt.NDArray[np.uint16] | None:
    """Samples of a PNG or TIFF file of 16 bits, grey or RGB; whether it is one is told by its header.

    The EXIF orientation is applied. Colour profiles are not.

    Args:
        opened: The file as Pillow opened it, not loaded yet; it is loaded here only if it has 16 bits.
        path: The file.

    Returns:
        ``uint16 [H, W, C]`` of 1 to 4 channels: grey or RGB, and alpha, not premultiplied. None for other files, and
        for TIFF files with 16 bits whose colours are premultiplied, or neither grey nor RGB.

    Raises:
        OSError: It is a TIFF whose channels of 16 bits lie apart, or OpenCV cannot decode it.
        Exception: It is damaged; of any kind, as Pillow raises them.
    """
    # Releases of Pillow differ in the mode that they give a 16-bit grey PNG.
    grey = opened.mode.startswith("I;16") or (opened.mode, opened.format) == ("I", "PNG")
    channels = None if grey else _colours_of(opened)
    if not grey and channels is None:
        return None
    # Of colours as well, because OpenCV takes what is missing of some truncated files for black.
    opened.load()
    samples = np.asarray(opened).astype(np.uint16)[..., None] if channels is None else _decode(path, channels)
    transparent = opened.info.get("transparency") if opened.format == "PNG" else None
    if transparent is not None and samples.shape[2] in (1, 3):
        visible = (samples != np.asarray(transparent, dtype=np.uint16)).any(axis=2, keepdims=True)
        samples = np.concatenate([samples, np.where(visible, np.uint16(65535), np.uint16(0))], axis=2)
    # Of TIFF files both libraries have applied it, and Pillow no longer names it.
    samples = upright(samples, int(opened.getexif().get(ORIENTATION, 1) or 1))
    return np.ascontiguousarray(samples)


def lay_over_white(samples: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """Rounds ``uint16 [H, W, C]``, as :func:`read_sixteen_bits` returns them, to ``uint8 [H, W, 3]`` RGB.

    Transparency is laid over white before samples are rounded.
    """
    channels = samples.shape[2]
    alpha = samples[..., -1].astype(np.float32) / np.float32(65535) if channels in (2, 4) else None
    rgb = np.empty((*samples.shape[:2], 3), dtype=np.uint8)
    for channel in range(3):
        plane = samples[..., channel if channels > 2 else 0].astype(np.float32)
        if alpha is not None:
            plane = 65535 - alpha * (65535 - plane)
        rgb[..., channel] = np.rint(plane / 257)
    return rgb


def _colours_of(opened: Image) -> str | None:
    if opened.format not in ("PNG", "TIFF"):
        return None
    tags: Any = getattr(opened, "tag_v2", {})
    if tags.get(_PLANAR_CONFIGURATION) == 2 and 16 in tags.get(_BITS_PER_SAMPLE, ()):
        # Neither library says that it misreads them.
        raise OSError("its channels of 16 bits are stored one after the other; convert it to a 16-bit PNG")
    tiles: Any = getattr(opened, "tile", None)
    stored = tiles[0][3] if tiles else ""
    return _COLOURS.get(str(stored[0] if isinstance(stored, tuple) else stored))


def _decode(path: Path, channels: str) -> npt.NDArray[np.uint16]:
    cv2 = require("cv2", extra="train")
    # From memory, because OpenCV cannot open every path; unchanged, so that it keeps 16 bits and alpha.
    samples: Any = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3 or samples.shape[2] < 3:
        raise OSError("OpenCV cannot decode its 16 bits; convert it to a 16-bit PNG")
    kept = {"LA": [0, 3], "RGBX": [2, 1, 0]}.get(channels, [2, 1, 0, 3][: samples.shape[2]])
    decoded: npt.NDArray[np.uint16] = samples[..., kept]
    return decoded


def upright(samples: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turns and mirrors ``[H, W, ...]`` as the number of EXIF says; a view."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples
