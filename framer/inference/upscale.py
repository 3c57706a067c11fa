"""Upscaling images of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from framer.data.images import resize_bicubic
from framer.errors import UserError
from framer.inference.colour import COLOUR_FIXES, ColourFix, fix_colours
from framer.inference.pictures import Picture
from framer.inference.restore import Prompt, Restorer

Plane = npt.NDArray[np.float32]

TRANSPARENT = 1 / 1024
"""Alpha below which a pixel's colour cannot be told from its premultiplied one."""

_IMAGES, _IMAGES_OF_AUTOENCODERS = 5, 3
"""Float32 images as large as the result that are in memory at once."""


@dataclass(frozen=True)
class Upscaler:
    """Enlarges images by a factor.

    An image is bicubically upscaled, continued by reflection to a size that the model takes (no less than one tile, the
    size that it was trained at), restored, and cut to exactly the factor times its size. What it becomes depends on it,
    the seed and the settings alone: every image is restored by itself, with the seed's noise for its size.

    Args:
        restorer: Restores what is upscaled.
        scale: The factor.
        colour_fix: Brings the colours back to those of the low-resolution image.

    Raises:
        UserError: The scale is below 1, or there is no such colour fix.
    """

    restorer: Restorer
    scale: int
    colour_fix: ColourFix = "none"

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise UserError(f"scale {self.scale}: expected 1 or more")
        if self.colour_fix not in COLOUR_FIXES:
            raise UserError(f"colour fix {self.colour_fix!r}: expected one of {', '.join(COLOUR_FIXES)}")

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that the model sees of an image of this size, in pixels."""
        pixels = self.restorer.pixels
        tile = self.restorer.tile * self.restorer.latents.shape.downscale
        high, wide = (-(-max(side * self.scale, tile) // pixels) * pixels for side in (height, width))
        return high, wide

    def tiles(self, height: int, width: int) -> int:
        """Tiles of an image of this size."""
        return len(self.restorer.grid(*self.padded_size(height, width)))

    def memory(self, height: int, width: int) -> int:
        """About the most bytes that an image of this size takes beside model and tiles, see docs/upscale.md."""
        high, wide = self.padded_size(height, width)
        images = _IMAGES if self.restorer.latents.vae is None else _IMAGES_OF_AUTOENCODERS
        # Transparency is one more channel, of the result and of the image that is read.
        return 4 * (high * wide * (3 * (images + self.restorer.start_from_image) + 1) + height * width * 4)

    def __call__(
        self,
        image: Plane,
        *,
        seed: int,
        prompt: Prompt | None = None,
        on_tiles: Callable[[int], None] | None = None,
    ) -> Plane:
        """Upscales an image without transparency.

        Args:
            image: ``[H, W, 3]`` float32 in [0, 1].
            seed: Of the initial noise; not negative.
            prompt: See :class:`Restorer`.
            on_tiles: See :class:`Restorer`.

        Returns:
            ``[scale * H, scale * W, 3]`` float32 in [0, 1].

        Raises:
            UserError: The model's output is not finite.
        """
        high, wide = image.shape[0] * self.scale, image.shape[1] * self.scale
        return self._restored(resize_bicubic(image, (high, wide)), seed=seed, prompt=prompt, on_tiles=on_tiles)

    def picture(
        self,
        picture: Picture,
        *,
        seed: int,
        prompt: Prompt | None = None,
        on_tiles: Callable[[int], None] | None = None,
    ) -> Picture:
        """Upscales an image file's content; transparency bicubically, and a grey image stays grey.

        Args:
            picture: Its colours are taken as they are, whatever the profile.
            seed: See :meth:`__call__`.
            prompt: See :meth:`__call__`.
            on_tiles: See :meth:`__call__`.

        Raises:
            UserError: The model's output is not finite.
        """
        height, width = (side * self.scale for side in picture.colour.shape[:2])
        alpha = _larger_alpha(picture.alpha, (height, width))
        # Without a name here, what is upsampled is given up as soon as it is continued.
        colour = self._restored(
            _larger_colour(picture, alpha, (height, width)), seed=seed, prompt=prompt, on_tiles=on_tiles
        )
        if picture.grey:
            colour = np.repeat(colour.mean(axis=2, keepdims=True), 3, axis=2)
        return Picture(
            colour=colour,
            alpha=alpha,
            grey=picture.grey,
            bits=picture.bits,
            profile=picture.profile,
            exif=picture.exif,
            notes=list(picture.notes),
        )

    def _restored(
        self, upsampled: Plane, *, seed: int, prompt: Prompt | None, on_tiles: Callable[[int], None] | None
    ) -> Plane:
        """Of a bicubically upscaled image, which is changed."""
        height, width = upsampled.shape[:2]
        np.clip(upsampled, 0, 1, out=upsampled)
        padded = self.padded_size(height // self.scale, width // self.scale)
        continued = _continued(upsampled, padded)
        del upsampled
        batch = torch.from_numpy(continued).permute(2, 0, 1)[None]
        # In place: each of these is as large as the image.
        batch.mul_(2).sub_(1)
        restored = self.restorer(batch, seed=seed, prompt=prompt, on_tiles=on_tiles)[..., :height, :width]
        if not bool(torch.stack([strip.isfinite().all() for strip in torch.split(restored, 256, dim=-2)]).all()):
            raise UserError("what the model makes of the image is not finite; try --precision fp32")
        restored = fix_colours(restored, batch[..., :height, :width], self.colour_fix)
        del batch, continued
        return _to_array(restored[0])


def _to_array(image: Tensor) -> Plane:
    """``[3, H, W]`` in [-1, 1], which is changed, as ``[H, W, 3]`` in [0, 1]."""
    image.add_(1).div_(2).clamp_(0, 1)
    array: Plane = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return array


def _continued(image: Plane, size: tuple[int, int]) -> Plane:
    """The image, continued below and to the right by reflection; as often as it takes where it is small."""
    missing = [(0, wanted - side) for wanted, side in zip(size, image.shape[:2], strict=True)]
    if not any(after for _, after in missing):
        return image
    return np.pad(image, [*missing, (0, 0)], mode="reflect")


def _larger_alpha(alpha: Plane | None, size: tuple[int, int]) -> Plane | None:
    """Bicubically upscaled; exactly 1 where all is opaque."""
    if alpha is None:
        return None
    if bool((alpha == 1).all()):
        return np.ones(size, dtype=np.float32)
    return np.clip(resize_bicubic(alpha[..., None], size), 0, 1)[..., 0]


def _larger_colour(picture: Picture, alpha: Plane | None, size: tuple[int, int]) -> Plane:
    """Colours, bicubically upscaled.

    They are averaged by how visible they are, so that what lies below fully transparent pixels (often black) does not
    show at the edges of what is visible.

    Args:
        picture: The image.
        alpha: Its transparency, already upscaled.
        size: Height and width.
    """
    plain = resize_bicubic(picture.colour, size)
    if picture.alpha is None or alpha is None or bool((picture.alpha == 1).all()):
        return plain
    visible = resize_bicubic(picture.colour * picture.alpha[..., None], size)
    upscaled = alpha[..., None]
    np.divide(visible, upscaled, out=plain, where=upscaled > TRANSPARENT)
    return plain
