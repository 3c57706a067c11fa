"""Encoding and decoding images of any size, a tile at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from framer.errors import UserError
from framer.inference.shared_statistics import SharedStatistics
from framer.inference.tiling import blend_tiles, feathered_axis
from framer.models.latents import LatentSpace


@dataclass(frozen=True)
class AutoencoderTiles:
    """How images and latents are cut for the autoencoder.

    Its normalisations and its attention see one tile at a time, so that tiles differ a little in tone from the image
    encoded at once; overlaps are feathered, so that the difference has no edge. Larger tiles differ less.

    Args:
        encoded: Height and width of a tile to encode, in pixels.
        decoded: Height and width of a tile to decode, in latent pixels.
        overlap: Part of a tile that its neighbour covers too, from 0 to below 1.
        shared_statistics: Whether all tiles see one pass earlier how the others are normalised, see
            :class:`SharedStatistics`; takes twice the time.

    Raises:
        UserError: A size that is not positive, or an overlap out of range.
    """

    encoded: int = 1024
    decoded: int = 224
    overlap: float = 0.25
    shared_statistics: bool = False

    def __post_init__(self) -> None:
        if self.encoded < 1:
            raise UserError(f"VAE tile of {self.encoded} pixels: expected 1 or more")
        if self.decoded < 1:
            raise UserError(f"VAE tile of {self.decoded} latent pixels: expected 1 or more")
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap {self.overlap} of VAE tiles: expected from 0 to below 1")


class TiledLatents(LatentSpace):
    """A latent space whose autoencoder sees tiles; images and latents stay where they are, tiles go to a device.

    Images of one tile are encoded and decoded as without tiling. Spaces without an autoencoder are left as they are.

    Args:
        latents: The space.
        tiles: Sizes.
        device: Where the autoencoder is; None: where the images are.

    Raises:
        UserError: Tiles to encode are of no whole number of latent pixels.
    """

    def __init__(self, latents: LatentSpace, tiles: AutoencoderTiles, device: torch.device | None) -> None:
        if latents.vae is not None and tiles.encoded % latents.shape.downscale:
            raise UserError(f"VAE tile of {tiles.encoded} pixels: expected a multiple of {latents.shape.downscale}")
        self._latents = latents
        self._tiles = tiles
        self._device = device
        self.shape = latents.shape
        self.vae = latents.vae

    def encode(self, image: Tensor, upsampled: Tensor, *, indices: Sequence[int], seed: int) -> Tensor:
        """As the space does, at once: draws are an image's, not a tile's."""
        return self._latents.encode(image, upsampled, indices=indices, seed=seed)

    def reference(self, upsampled: Tensor) -> Tensor:
        """See :meth:`LatentSpace.reference`."""
        return self._encoded(self._latents.reference, upsampled)

    def of_upsampled(self, upsampled: Tensor) -> Tensor:
        """See :meth:`LatentSpace.of_upsampled`."""
        return self._encoded(self._latents.of_upsampled, upsampled)

    def condition(self, reference: Tensor) -> Tensor:
        """As the space does."""
        return self._latents.condition(reference)

    def decode(self, latents: Tensor, upsampled: Tensor) -> Tensor:
        """See :meth:`LatentSpace.decode`."""
        if self.vae is None:
            return self._latents.decode(latents, upsampled)
        return self._in_tiles(self._latents.decode, latents, upsampled, tile=self._tiles.decoded)

    def _encoded(self, encode: Callable[[Tensor], Tensor], upsampled: Tensor) -> Tensor:
        if self.vae is None:
            return encode(upsampled)
        return self._in_tiles(encode, upsampled, tile=self._tiles.encoded, multiple=self.shape.downscale)

    def _in_tiles(self, function: Callable[..., Tensor], *images: Tensor, tile: int, multiple: int = 1) -> Tensor:
        def blended(*some: Tensor) -> Tensor:
            return blend_tiles(
                function,
                *some,
                tile=tile,
                overlap=int(tile * self._tiles.overlap),
                multiple=multiple,
                batch=1,
                window=feathered_axis,
                device=self._device,
            )

        if not self._tiles.shared_statistics or max(images[0].shape[-2:]) <= tile:
            return blended(*images)
        assert self.vae is not None
        results = []
        for one in zip(*(torch.split(image, 1) for image in images), strict=True):
            statistics = SharedStatistics(self.vae)
            with statistics.measured():
                blended(*one)
            with statistics.applied():
                results.append(blended(*one))
        return results[0] if len(results) == 1 else torch.cat(results)
