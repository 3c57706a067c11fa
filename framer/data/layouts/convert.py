"""From a folder in another project's layout to a folder of shards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import torch

from framer.config.data import Degradation
from framer.data.layouts.base import GT, LATENT_HR, LATENT_LR, LR, PROMPT_EMBEDS, Layout, LayoutFolder
from framer.data.layouts.check import CheckedFolder, check_folder
from framer.data.layouts.given_texts import write_given_texts
from framer.data.layouts.kept_latents import KeptLatents
from framer.data.layouts.matching import open_layout
from framer.data.layouts.pairs import LayoutPairs
from framer.data.shards.licences import licences_of
from framer.data.shards.manifest import TEXTS_FOLDER, LatentsDtype
from framer.data.texts.prepare import captions_kind, prepare_texts
from framer.data.texts.store import TextStore, write_text_store
from framer.errors import UserError

logger = logging.getLogger(__name__)

# Keys of LayoutPairs.made_from that the embeddings and the captions are part of.
_TEXTS: Final = "texts of --from"
_CAPTIONS: Final = "--from"


@dataclass(frozen=True)
class LayoutOptions:
    """How a folder is converted.

    Attributes:
        degradation: Preset that the LR images are taken to be made with.
        content_check: Whether images are compared with each other.
        captions: Other texts than the folder's, as ``framer prepare --captions`` takes them; None for the folder's.
        text_encoder: Pipeline that embeds the texts anew; None takes the folder's embeddings over.
        keep_latents: Whether the folder's latents are carried over; needs `vae`.
        vae: Autoencoder that made the latents.
        latents_dtype: How kept latents are stored.
        device: Where encoders run.
        workers: Processes that read and check.
        licence: Under which terms the photographs are used; None where nobody says.
    """

    degradation: Degradation = "heavy"
    content_check: bool = True
    captions: str | None = None
    text_encoder: Path | None = None
    keep_latents: bool = False
    vae: Path | None = None
    latents_dtype: LatentsDtype = "fp32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0
    licence: str | None = None


class _Texts(NamedTuple):
    captions: dict[str, str]
    store: TextStore | None


class EarlierCheck(Protocol):
    """Refuses a folder of other shards before there are texts, see ``framer.data.shards.writer.check_earlier``."""

    def __call__(self, pairs: LayoutPairs, *, unknown: Collection[str], embedded: bool) -> None:
        """Refuses pairs whose shards the folder does not hold."""


def layout_pairs(
    root: Path, layout: Layout, output: Path, options: LayoutOptions, check_earlier: EarlierCheck | None = None
) -> LayoutPairs:
    """Checks a folder, writes its texts, and gives its pairs.

    Args:
        root: The folder.
        layout: Its layout.
        output: Folder of the shards, whose subfolder ``texts`` the texts are written into.
        options: How it is converted.
        check_earlier: Called before anything is captioned or encoded; None checks nothing.

    Raises:
        UserError: Anything is wrong with the folder, see `open_layout` and `check_folder`; or an option does not fit
            it; or ``output`` holds texts of something else.
    """
    folder = open_layout(root, layout)
    _check_options(folder, options)
    carried = {GT, LR} | ({LATENT_HR, LATENT_LR} if options.keep_latents else set())
    checked = check_folder(folder, carried=carried, content_check=options.content_check, workers=options.workers)
    latents = None
    if options.keep_latents:
        assert options.vae is not None
        latents = KeptLatents(checked, options.vae, device=options.device, dtype=options.latents_dtype)
    elif folder.has(LATENT_HR):
        instead = "training encodes the images itself" if options.vae is None else "--vae makes moments of the images"
        logger.warning(
            "%s: latents are checked but not carried over, for each is one draw without its mean and variance; %s",
            root,
            instead,
        )
    make = partial(
        LayoutPairs,
        checked,
        degradation=options.degradation,
        captions_from="--from" if options.captions is None else captions_kind(options.captions),
        latents=latents,
        licences=licences_of([], bundled=False, stated=options.licence),
    )
    given = options.captions is None and folder.has(PROMPT_EMBEDS)
    embedded = options.text_encoder is not None or given

    def check(captions: Mapping[str, str], unknown: Collection[str] = (_TEXTS,)) -> None:
        if check_earlier is not None:
            check_earlier(make(captions=captions), unknown=unknown, embedded=embedded)

    if options.captions is not None:
        check({}, (_TEXTS, _CAPTIONS))
    texts = _texts(checked, output / TEXTS_FOLDER, options, check)
    return make(captions=texts.captions, store=texts.store)


def _check_options(folder: LayoutFolder, options: LayoutOptions) -> None:
    if options.keep_latents and not folder.has(LATENT_HR):
        raise UserError(f"--keep-latents: {folder.root} has no latents, {LATENT_HR}/ and {LATENT_LR}/")
    if options.keep_latents and options.vae is None:
        raise UserError("--keep-latents needs --vae, whose config says how the latents were shifted and scaled")
    if options.text_encoder is not None and options.captions is None and not folder.has(folder.layout.texts):
        raise UserError(
            f"--text-encoder: {folder.root} has no texts, {folder.layout.texts}/; give --captions, or 'null' for none"
        )


def _texts(
    checked: CheckedFolder, output: Path, options: LayoutOptions, check: Callable[[Mapping[str, str]], None]
) -> _Texts:
    folder = checked.folder
    anew = options.captions is not None or options.text_encoder is not None
    if anew and folder.has(PROMPT_EMBEDS):
        logger.warning("%s: its embeddings are not carried over, as texts are made anew", folder.root)
    if options.captions is not None:
        photographs = [record.paths[GT] for record in folder.records]
        prepared = prepare_texts(
            photographs,
            folder.root / GT,
            output,
            captions=options.captions,
            encoder_folder=options.text_encoder,
            device=options.device,
            before_encoding=check,
        )
        return _Texts(prepared.captions, prepared.store)
    captions = {record.name: record.caption for record in checked.records if record.caption is not None}
    check(captions)
    if options.text_encoder is not None:
        from framer.models.text_encoders import load_text_encoder

        encoder = load_text_encoder(options.text_encoder, device=options.device)
        return _Texts(captions, write_text_store(output, captions, encoder))
    return _Texts(captions, write_given_texts(checked, output) if folder.has(PROMPT_EMBEDS) else None)
