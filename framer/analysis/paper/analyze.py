"""Measures all models on all tiles, one model in memory at a time, and writes figures and report."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from framer.analysis.history import read_metrics
from framer.analysis.paper.figures import FIGURES, Analysis
from framer.analysis.paper.measure import (
    AnalysedModel,
    Measures,
    MeasureSettings,
    load_model,
    measure,
    timesteps_of,
)
from framer.analysis.paper.page import Page, Section, Table, Thumbnail, write_page
from framer.analysis.paper.sources import Source, hash_of
from framer.analysis.paper.tiles import Tiles, cut_tiles
from framer.config.data import Degradation
from framer.data.levels import tensor_to_bytes
from framer.errors import UserError
from framer.extras import require
from framer.features import adapter_for
from framer.files import writing
from framer.models.folders import BASE_FOLDER

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

REPORT = "report.html"
_THUMBNAIL = 128
_TITLE: Final = "FRAMER analysis: "
_FIGURE_FILES: Final = (
    *(f"{name}.json" for name in FIGURES),
    *(f"{name}.png" for name in FIGURES if name != "fig5"),
    *(f"fig5_{part}.png" for part in ("teacher", "student", "depth")),
)
"""Everything that figures write."""


class Outcome(NamedTuple):
    """What an analysis lacks; the report says it too.

    Attributes:
        missing: What could not be drawn, and why; each a sentence.
        failed: Models that could not be measured, and why; each a sentence.
    """

    missing: list[str]
    failed: list[str]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and how.

    Attributes:
        images: What the images were called on the command line.
        figures: Names of the figures to draw, in order.
        timesteps: Of 1000.
        settings: How features are compared.
        degradation: Preset that makes the low-resolution images.
        tile: Pixels a side of a tile.
        scale: Upscaling factor of the models.
        most_tiles: Most tiles in all.
        device: Where models run.
        vae: The autoencoder's folder, where it has moved.
        pretrained: The folder of the model beside a ControlNet, likewise.
        command: The command line, for the report.
    """

    images: str
    figures: Sequence[str]
    timesteps: list[int]
    settings: MeasureSettings
    degradation: Degradation
    tile: int
    scale: int
    most_tiles: int
    device: torch.device
    vae: str | None = None
    pretrained: str | None = None
    command: str = ""


def analyze(sources: Sequence[Source], photographs: Sequence[Path], folder: Path, options: Options) -> Outcome:
    """Draws the figures and writes the report; in a folder with an earlier one, in its place.

    A model that fails once others are measured is left out, and what is measured is drawn.

    Args:
        sources: The models.
        photographs: The images' files.
        folder: Where everything goes; it exists.
        options: What is measured, and how.

    Raises:
        UserError: An image or a log is missing, damaged or does not fit, or so are all models.
    """
    metrics = {source.label: read_metrics(source.metrics) for source in sources if source.metrics is not None}
    tiles = cut_tiles(
        list(photographs),
        tile=options.tile,
        scale=options.scale,
        degradation=options.degradation,
        seed=options.settings.seed,
        most=options.most_tiles,
    )
    measured: dict[str, dict[int, Measures]] = {}
    described: list[list[str]] = []
    failures: dict[str, Exception] = {}
    passes = len(sources) * len(options.timesteps) * len(tiles.tiles)
    with require("tqdm", extra="train").tqdm(total=passes, desc="analyze", unit="tile") as progress:
        for source in sources:
            try:
                with _loaded(source, options) as (model, digest):
                    measured[source.label] = _measured(source, model, tiles, options, progress)
                    described.append(_described(source, model, digest))
            except (UserError, torch.OutOfMemoryError) as error:
                failures[source.label] = error
                logger.warning("%s could not be measured: %s", source.label, error)
            gc.collect()
    if not measured:
        raise next(iter(failures.values()))
    failed = [f"{label} could not be measured: {error}" for label, error in failures.items()]
    sources = [source for source in sources if source.label in measured]
    # Beside an earlier analysis, which stays whole where the disk is too full for the new one.
    with writing(folder), tempfile.TemporaryDirectory(prefix=".analysis-", dir=folder) as unfinished:
        analysis = Analysis(sources, measured, metrics, tiles.names, Path(unfinished))
        sections = [FIGURES[name](analysis) for name in options.figures]
        header = ("model", "step", "class", "parameters", "layers", "trained for", "weights (SHA-256)", "folder")
        write_page(
            Path(unfinished) / REPORT,
            Page(
                title=_TITLE + _models(sources),
                command=options.command,
                models=Table(header=header, rows=described),
                images=[_thumbnail(tiles, image) for image in range(len(tiles.names))],
                images_note=_images_note(tiles, options),
                settings=_settings(options, tiles),
                sections=sections,
                notes=[*failed, *_notes(sources, measured, options)],
            ),
        )
        _remove_earlier(folder)
        for file in Path(unfinished).iterdir():
            file.replace(folder / file.name)
    return Outcome(_missing(sections), failed)


def _remove_earlier(folder: Path) -> None:
    """Removes the figures of an earlier analysis, which would not be those of the new report."""
    report = folder / REPORT
    if not report.is_file() or f"<title>{_TITLE}" not in report.read_text(encoding="utf-8", errors="replace"):
        return
    for name in _FIGURE_FILES:
        with writing(folder / name):
            (folder / name).unlink(missing_ok=True)


def _missing(sections: Sequence[Section]) -> list[str]:
    """What was not drawn, each reason once, with the figures that it holds for."""
    figures: dict[str, list[str]] = {}
    for section in sections:
        for sentence in section.missing:
            figures.setdefault(sentence, []).append(section.title.split(":")[0])
    return [f"{', '.join(names)}: {sentence}" for sentence, names in figures.items()]


@contextlib.contextmanager
def _loaded(source: Source, options: Options) -> Iterator[tuple[AnalysedModel, str]]:
    """The model and its weights' hash; of a checkpoint by way of an export in a temporary folder."""
    with contextlib.ExitStack() as stack:
        folder = source.folder
        if source.checkpoint:
            from framer.training.export_checkpoint import export_checkpoint
            from framer.training.trainer_state import read_state

            averaged = read_state(folder).config.get("training", {}).get("ema", {}).get("decay") is not None
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="framer-analyze-"))) / "export"
            export_checkpoint(source.folder, folder, ema=averaged)
        digest = hash_of(sorted(folder.glob("*.safetensors")), source.folder)
        yield load_model(folder, options.device, vae=options.vae, pretrained=options.pretrained), digest


def _measured(
    source: Source, model: AnalysedModel, tiles: Tiles, options: Options, progress: tqdm[Any]
) -> dict[int, Measures]:
    timesteps = timesteps_of(model, options.timesteps)
    # A model that knows one timestep alone leaves the others out.
    progress.total = (progress.total or 0) - (len(options.timesteps) - len(timesteps)) * len(tiles.tiles)
    progress.set_postfix_str(source.label[:24])
    return {
        timestep: measure(model, tiles, timestep, options.settings, after_batch=progress.update)
        for timestep in timesteps
    }


def _models(sources: Sequence[Source]) -> str:
    return "; ".join(source.label for source in sources) if len(sources) < 4 else f"{len(sources)} models"


def _described(source: Source, model: AnalysedModel, digest: str) -> list[str]:
    own = model.restoring.restoration.model
    return [
        source.label,
        "unknown" if source.step is None else str(source.step),
        type(own).__name__,
        f"{sum(parameter.numel() for parameter in own.parameters()) / 1e6:.2f} M",
        str(len(adapter_for(own).blocks)),
        f"{model.settings.type}, x{model.restoring.scale}",
        digest,
        "of the package" if source.folder == BASE_FOLDER else str(source.folder),
    ]


def _settings(options: Options, tiles: Tiles) -> dict[str, str]:
    import diffusers

    from framer import __version__

    settings = options.settings
    return {
        "timesteps": " ".join(map(str, options.timesteps)),
        "feature space": settings.space,
        "bands": f"radial, low up to {settings.bands.value:g} of Nyquist",
        "cosine of": f"{settings.representation} spectra",
        "images": options.images,
        "degradation": f"{options.degradation}, x{options.scale}",
        "tiles": f"{len(tiles.tiles)} of {options.tile} x {options.tile} pixels, {settings.batch_size} a batch",
        "seed": str(settings.seed),
        "device": str(options.device),
        "versions": f"framer {__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"Python {platform.python_version()}",
    }


def _images_note(tiles: Tiles, options: Options) -> str:
    note = (
        f"{len(tiles.tiles)} tiles of {len(tiles.names)} images. Of each image one tile: as the models see it, "
        f"degraded ({options.degradation}) and upscaled, on the left, and the original on the right."
    )
    if tiles.left_out:
        note += f" {tiles.left_out} more images were left out (--max-tiles {options.most_tiles})."
    return note


def _notes(sources: Sequence[Source], measured: dict[str, dict[int, Measures]], options: Options) -> list[str]:
    notes = [f"{source.label}: {source.note}." for source in sources if source.note]
    for label, measures in measured.items():
        if set(measures) != set(options.timesteps):
            notes.append(
                f"{label} restores in one step: it was measured at t = {next(iter(measures))}, the only timestep "
                "that it knows, instead of the timesteps asked for."
            )
    return notes


def _thumbnail(tiles: Tiles, image: int) -> Thumbnail:
    images = require("PIL.Image", extra="train")
    tile = next(tile for tile in tiles.tiles if tile.image == image)
    both = torch.cat([tile.upsampled, tile.hr], dim=2)
    picture = images.fromarray(tensor_to_bytes(both)).resize((2 * _THUMBNAIL, _THUMBNAIL), images.Resampling.LANCZOS)
    png = io.BytesIO()
    picture.save(png, format="PNG")
    return Thumbnail(name=tiles.names[image], png=png.getvalue())
