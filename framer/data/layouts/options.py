"""What ``framer prepare`` takes for folders in other projects' layouts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from framer.arguments import given_path
from framer.config.data import Degradation
from framer.errors import UserError

if TYPE_CHECKING:
    import torch

    from framer.data.layouts.convert import EarlierCheck
    from framer.data.layouts.pairs import LayoutPairs

# Not from framer.data.layouts.matching, whose imports would slow down --help.
_LAYOUTS = ("dit4sr", "seesr")


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments for folders of pairs."""
    group = parser.add_argument_group("pairs that were prepared for another project, in the place of photographs")
    group.add_argument(
        "--from",
        type=given_path,
        dest="source",
        metavar="FOLDER",
        help="folder of gt/, lr/ and what belongs to them by name",
    )
    group.add_argument("--layout", choices=_LAYOUTS, help="whose folder it is: DiT4SR's and FRAMER's, or SeeSR's")
    group.add_argument(
        "--degradation",
        choices=get_args(Degradation),
        help="preset that the folder's lr was made with, default heavy, as in those projects",
    )
    group.add_argument("--no-content-check", action="store_true", help="do not compare what the images of a pair show")
    group.add_argument(
        "--keep-latents", action="store_true", help="carry the folder's latents over, which the --vae made"
    )


def check_layout_arguments(arguments: argparse.Namespace) -> None:
    """Compares arguments with each other.

    Raises:
        UserError: They do not go together.
    """
    if arguments.source is None:
        given = [
            option
            for option, value in (
                ("--layout", arguments.layout),
                ("--degradation", arguments.degradation),
                ("--no-content-check", arguments.no_content_check),
                ("--keep-latents", arguments.keep_latents),
            )
            if value
        ]
        if given:
            raise UserError(f"{given[0]} is of folders that --from names; give --from too")
        return
    if arguments.layout is None or arguments.output is None:
        raise UserError(f"--from needs --output and --layout, one of {', '.join(_LAYOUTS)}")
    unused = [option for option in ("config", "samples") if getattr(arguments, option) is not None]
    unused = [f"--{option}" for option in unused] + arguments.overrides
    if unused:
        raise UserError(f"{unused[0]} is of photographs that pairs are made of; with --from, leave it away")
    from framer.data.outputs import lies_in

    if lies_in(arguments.output.expanduser(), arguments.source.expanduser()):
        raise UserError(f"--output {arguments.output} lies in --from {arguments.source}; give a folder outside it")


def layout_source(
    arguments: argparse.Namespace,
    folder: Path,
    device: torch.device,
    check_earlier: EarlierCheck,
    *,
    licence: str | None,
) -> LayoutPairs:
    """Checks the folder that ``--from`` names, writes its texts, and gives its pairs.

    Args:
        arguments: The command's.
        folder: Folder of the shards.
        device: Where models run.
        check_earlier: Called before anything is captioned or encoded.
        licence: Of the photographs; None where nobody says.

    Raises:
        UserError: The folder cannot be converted; see `layout_pairs`.
    """
    from framer.data.layouts.convert import LayoutOptions, layout_pairs
    from framer.data.layouts.matching import LAYOUTS

    options = LayoutOptions(
        degradation=arguments.degradation or "heavy",
        content_check=not arguments.no_content_check,
        captions=arguments.captions,
        text_encoder=_expanded(arguments.text_encoder),
        keep_latents=arguments.keep_latents,
        vae=_expanded(arguments.vae),
        latents_dtype=arguments.latents_dtype or "fp32",
        device=device,
        workers=layout_workers(arguments),
        licence=licence,
    )
    return layout_pairs(arguments.source.expanduser(), LAYOUTS[arguments.layout], folder, options, check_earlier)


def layout_workers(arguments: argparse.Namespace) -> int:
    """Processes that read files."""
    return 1 if arguments.workers is None else int(arguments.workers)


def _expanded(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser()
