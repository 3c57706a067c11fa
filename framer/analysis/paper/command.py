"""The command ``framer analyze``: the paper's figures, measured on checkpoints, and a report of them."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from framer.arguments import given_path, given_text
from framer.errors import UserError
from framer.files import check_writable

if TYPE_CHECKING:
    from framer.analysis.paper.sources import Source

HELP = "Draw the paper's figures from checkpoints and runs, with a report as one HTML file."

FIGURE_NAMES: Final = ("fig2", "fig3", "fig5", "fig7", "fig8", "fig9")
REPORT: Final = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=given_text,
        metavar="CHECKPOINT",
        help="an export, a run's folder, a checkpoint of a run, or 'base'; several are compared",
    )
    parser.add_argument(
        "-o", "--output", type=given_path, required=True, metavar="DIR", help="folder of pictures and report"
    )
    parser.add_argument(
        "--images",
        type=given_text,
        default="heldout",
        help="a folder of high-resolution images, 'heldout' (default) or 'validation'",
    )
    parser.add_argument("--labels", nargs="+", default=[], metavar="NAME", help="what figures call the checkpoints")
    parser.add_argument("--every-step", action="store_true", help="also every kept checkpoint of the runs given")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[300, 700], metavar="T", help="of 1000")
    parser.add_argument("--only", metavar="NAMES", help=f"figures to draw, of {','.join(FIGURE_NAMES)}; default all")
    parser.add_argument("--feature-space", choices=["hidden", "x0", "velocity"], default="hidden")
    parser.add_argument("--cutoff", type=float, default=0.25, help="radius of the low band, 1 is Nyquist; default 0.25")
    parser.add_argument("--representation", choices=["complex", "magnitude"], default="complex")
    parser.add_argument("--degradation", choices=["heavy", "light", "stablesr"], default="heavy")
    parser.add_argument("--tile", type=int, help="pixels a side of a tile; the training crop by default")
    parser.add_argument("--max-tiles", type=int, default=64, help="most tiles in all, default 64")
    parser.add_argument("--batch-size", type=int, default=8, help="tiles of one forward pass, default 8")
    parser.add_argument("--seed", type=int, default=0, help="of degradations and noise")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument(
        "--vae", type=given_text, help="the autoencoder's folder, where it is no longer where it was in training"
    )
    parser.add_argument(
        "--pretrained", type=given_text, help="the folder of the model that a ControlNet was trained beside, likewise"
    )


def run(arguments: argparse.Namespace) -> int:
    """Analyses; the exit status: 1 where a model could not be measured and others were.

    Raises:
        UserError: Arguments are out of range or do not fit the checkpoints.
    """
    figures = _figures(arguments.only)
    _check_numbers(arguments)

    import torch

    from framer.analysis.paper.analyze import Options, analyze
    from framer.analysis.paper.checks import check_sources
    from framer.analysis.paper.measure import MeasureSettings
    from framer.analysis.paper.sources import find_sources
    from framer.analysis.paper.tiles import find_photographs
    from framer_kernels import BandSplit

    try:
        device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"--device: {arguments.device} is no device; give cpu, cuda or cuda:1, for example") from None
    sources = find_sources(arguments.checkpoints, labels=arguments.labels, every_step=arguments.every_step)
    tile, scale = _tile_and_scale(sources, arguments.tile)
    settings = MeasureSettings(
        space=arguments.feature_space,
        bands=BandSplit.radial(arguments.cutoff),
        representation=arguments.representation,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    check_sources(sources, settings, tile=tile, vae=arguments.vae, pretrained=arguments.pretrained)
    photographs = find_photographs(arguments.images)
    output: Path = arguments.output.expanduser()
    check_writable(output)
    output.mkdir(parents=True, exist_ok=True)
    options = Options(
        images=arguments.images,
        figures=figures,
        timesteps=sorted(arguments.timesteps),
        settings=settings,
        degradation=arguments.degradation,
        tile=tile,
        scale=scale,
        most_tiles=arguments.max_tiles,
        device=device,
        vae=arguments.vae,
        pretrained=arguments.pretrained,
        command=_command_line(),
    )
    outcome = analyze(sources, photographs, output, options)
    for sentence in outcome.missing:
        sys.stdout.write(f"not drawn: {sentence}\n")
    sys.stdout.write(f"report: {output / REPORT}\n")
    for sentence in outcome.failed:
        sys.stderr.write(f"failed: {sentence}\n")
    return 1 if outcome.failed else 0


def _figures(only: str | None) -> list[str]:
    if only is None:
        return list(FIGURE_NAMES)
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = sorted(set(names) - set(FIGURE_NAMES))
    if unknown or not names:
        raise UserError(f"--only: {', '.join(unknown) or 'no figure'}; the figures are {', '.join(FIGURE_NAMES)}")
    return [name for name in FIGURE_NAMES if name in names]


def _check_numbers(arguments: argparse.Namespace) -> None:
    for timestep in arguments.timesteps:
        if not 1 <= timestep <= 999:
            raise UserError(f"--timesteps: {timestep} is not from 1 to 999")
    if len(set(arguments.timesteps)) != len(arguments.timesteps):
        raise UserError(f"--timesteps: {' '.join(map(str, arguments.timesteps))} names one twice")
    for name in ("max_tiles", "batch_size"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(arguments, name)}")
    if arguments.tile is not None and arguments.tile < 1:
        raise UserError(f"--tile must be 1 or more, got {arguments.tile}")
    if arguments.seed < 0:
        raise UserError(f"--seed must be 0 or more, got {arguments.seed}")
    if not 0.0 <= arguments.cutoff < math.sqrt(2.0):
        raise UserError(f"--cutoff must be at least 0 and below sqrt(2), got {arguments.cutoff}")


def _tile_and_scale(sources: Sequence[Source], given: int | None) -> tuple[int, int]:
    """The tile's size and the scale that all models share.

    Raises:
        UserError: They do not share them.
    """
    settings = {source.label: source.settings() for source in sources}
    try:
        tiles = {label: int(str(found["tile"])) for label, found in settings.items()}
        scales = {label: int(str(found["scale"])) for label, found in settings.items()}
    except (KeyError, ValueError) as error:
        raise UserError(f"restoration.json is damaged: {error!r}") from None
    if len(set(scales.values())) > 1:
        raise UserError(f"the models upscale by different factors, so that no image suits all: {_listed(scales)}")
    if given is None and len(set(tiles.values())) > 1:
        raise UserError(f"the models were trained on crops of different sizes: {_listed(tiles)}; choose with --tile")
    tile, scale = given or next(iter(tiles.values())), next(iter(scales.values()))
    if tile % scale:
        raise UserError(f"--tile {tile} is not a multiple of the scale {scale}")
    return tile, scale


def _listed(values: dict[str, int]) -> str:
    return ", ".join(f"{label} {value}" for label, value in values.items())


def _command_line() -> str:
    program, *rest = sys.argv
    return shlex.join([Path(program).name, *rest])
