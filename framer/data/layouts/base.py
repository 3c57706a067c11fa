"""What a layout is: subfolders whose files belong together by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from framer.data.images import IMAGE_SUFFIXES

GT, LR, SR_BICUBIC = "gt", "lr", "sr_bicubic"
PROMPT_EMBEDS, POOLED_PROMPT_EMBEDS = "prompt_embeds", "pooled_prompt_embeds"
LATENT_HR, LATENT_LR = "latent_hr", "latent_lr"

TEXT_SUFFIXES: Final = frozenset({".txt"})
TENSOR_SUFFIXES: Final = frozenset({".pt"})
IMAGES: Final = (GT, LR, SR_BICUBIC)
REQUIRED: Final = (GT, LR)
"""Subfolders that every layout must have; the others may be absent as a whole."""


@dataclass(frozen=True)
class Layout:
    """The subfolders of one project's folders.

    Attributes:
        name: What ``--layout`` takes.
        texts: Subfolder of the images' texts.
        tensors: Subfolders of tensors, each in a file of its own.
        together: Subfolders that are of use together only: all or none are there.
        null_tensors: By subfolder, the file with the tensor of the empty text.
        prompt_channels: Channels of a prompt's embeddings, ``[T, prompt_channels]``.
        pooled_channels: Channels of its pooled embedding, ``[pooled_channels]``.
        latent_channels: Channels of latents, ``[latent_channels, H / latent_downscale, W / latent_downscale]``.
        latent_downscale: Pixels a side of one latent pixel.
    """

    name: str
    texts: str
    tensors: tuple[str, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    null_tensors: tuple[tuple[str, str], ...] = ()
    prompt_channels: int = 0
    pooled_channels: int = 0
    latent_channels: int = 0
    latent_downscale: int = 1

    @property
    def subfolders(self) -> tuple[str, ...]:
        """All of them."""
        return (*IMAGES, self.texts, *self.tensors)

    def suffixes(self, subfolder: str) -> frozenset[str]:
        """Suffixes, in lower case, that the files of a subfolder may have."""
        if subfolder in IMAGES:
            return IMAGE_SUFFIXES
        return TEXT_SUFFIXES if subfolder == self.texts else TENSOR_SUFFIXES


@dataclass(frozen=True)
class LayoutRecord:
    """The files of one sample.

    Attributes:
        name: Their common name without suffix.
        paths: By subfolder, the file.
    """

    name: str
    paths: dict[str, Path]


@dataclass(frozen=True)
class LayoutFolder:
    """A folder whose files have been matched by name.

    Attributes:
        root: The folder.
        layout: Its layout.
        subfolders: Those that are there, in the layout's order.
        records: The samples, in the order of their names.
        null_tensors: By subfolder, the file with the tensor of the empty text; empty where there are no embeddings.
    """

    root: Path
    layout: Layout
    subfolders: tuple[str, ...]
    records: tuple[LayoutRecord, ...]
    null_tensors: dict[str, Path]

    def has(self, subfolder: str) -> bool:
        """Whether a subfolder is there."""
        return subfolder in self.subfolders
