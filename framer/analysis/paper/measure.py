"""What all figures need of a model at a timestep, from one forward pass of each tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from framer.analysis.paper.spectra import Spectrum
from framer.analysis.paper.tiles import Tile, Tiles, stacked
from framer.config.objective import ObjectiveConfig, ObjectiveType
from framer.errors import UserError
from framer.features import FeatureTap, adapter_for, feature_space
from framer.inference.load import RestoringModel, load_restoring_model, movable, parse_settings, read_settings
from framer.models.restoration import RESTORATION_FILE
from framer.seeding import normal_per_sample
from framer_kernels import BandSplit, Representation, band_similarity, framer_loss

if TYPE_CHECKING:
    from framer.features.adapters import Adapter

Space = Literal["hidden", "x0", "velocity"]


@dataclass(frozen=True)
class MeasureSettings:
    """How features are compared.

    Attributes:
        space: Feature space.
        bands: The division of the spectrum, radial.
        representation: What the cosine compares.
        batch_size: Tiles of one forward pass.
        seed: Of the noise.
    """

    space: Space
    bands: BandSplit
    representation: Representation
    batch_size: int
    seed: int


@dataclass(frozen=True)
class AnalysedModel:
    """An export in memory.

    Attributes:
        restoring: The model, with what stands between it and images.
        settings: What it was trained on, as far as its export says.
    """

    restoring: RestoringModel
    settings: ObjectiveConfig


def load_model(
    folder: Path, device: torch.device, *, vae: str | None = None, pretrained: str | None = None
) -> AnalysedModel:
    """Loads an export.

    Args:
        folder: With its ``restoration.json``.
        device: Where it goes.
        vae: The autoencoder's folder, where it has moved; not read where the model has none.
        pretrained: The folder of the model beside a ControlNet, likewise.

    Raises:
        UserError: A file is missing, damaged or does not fit.
    """
    needed = movable(read_settings(folder / RESTORATION_FILE))
    restoring = load_restoring_model(
        folder,
        device=device,
        vae=vae if "vae" in needed else None,
        pretrained=pretrained if "pretrained" in needed else None,
    )
    return AnalysedModel(restoring, parse_settings(restoring.settings, folder, moved={}).objective)


class PairMeans:
    """Means over pairs of images, one number for each pair; filled tile by tile.

    Args:
        images: How many images there are.
    """

    def __init__(self, images: int) -> None:
        self._sums = np.zeros((images, images))
        self._counts = np.zeros((images, images), dtype=np.int64)

    def add(self, row: int, column: int, value: float) -> None:
        """Counts one pair of tiles."""
        self._sums[row, column] += value
        self._counts[row, column] += 1

    @property
    def matrix(self) -> NDArray[np.float64]:
        """``[images, images]``; NaN where no pair was seen."""
        with np.errstate(invalid="ignore"):
            return self._sums / np.where(self._counts == 0, np.nan, self._counts)

    def mean(self, *, same: bool) -> float | None:
        """Mean over the pairs of tiles, of one image or of two; None where there are none."""
        chosen = np.eye(len(self._sums), dtype=bool) == same
        count = int(self._counts[chosen].sum())
        return float(self._sums[chosen].sum() / count) if count else None


@dataclass
class LayerMeasures:
    """One layer against the last one, in both bands.

    Attributes:
        number: The layer's number, counted from 0.
        name: Its name within the model.
        lf: Similarity of its low band to the last layer's of the same tile (diagonal) and of other images' tiles.
        hf: That of its high band.
        weight_lf: FAW times FAM of each tile in the low band.
        weight_hf: That in the high band.
    """

    number: int
    name: str
    lf: PairMeans
    hf: PairMeans
    weight_lf: list[float] = field(default_factory=list)
    weight_hf: list[float] = field(default_factory=list)


@dataclass
class Measures:
    """What was measured of a model at one timestep.

    Attributes:
        timestep: Of 1000.
        count: Number of layers, the last one included.
        teacher: The last layer's name.
        layers: Those that can be compared with the last one, first one first.
        incomparable: Names of the layers that cannot, for their maps have another shape.
        teacher_lf: Similarity of the last layer's low band between tiles of different images.
        teacher_hf: That of its high band.
        spectra: Histograms by what they are of.
        tiles: Number of tiles.
    """

    timestep: int
    count: int
    teacher: str
    layers: list[LayerMeasures]
    incomparable: list[str]
    teacher_lf: PairMeans
    teacher_hf: PairMeans
    spectra: dict[str, Spectrum]
    tiles: int = 0


def check_space(space: Space, objective: ObjectiveType) -> None:
    """Refuses a feature space that undoes the noise of flow matching for a model that has other noise.

    Raises:
        UserError: It is refused.
    """
    if space != "hidden" and objective != "flow_matching":
        raise UserError(
            f"--feature-space {space}: the model was trained with objective.type {objective}, and that space undoes "
            "the noise of flow matching; take --feature-space hidden"
        )


def timesteps_of(model: AnalysedModel, wanted: list[int]) -> list[int]:
    """The timesteps that a model can be measured at: those asked for, or the only one that it ever sees."""
    only = model.restoring.objective.fixed_timestep
    return wanted if only is None else [only]


@torch.no_grad()
def measure(
    model: AnalysedModel,
    tiles: Tiles,
    timestep: int,
    settings: MeasureSettings,
    *,
    after_batch: Callable[[int], object],
) -> Measures:
    """Runs every tile through the model once and compares its layers.

    Args:
        model: Evaluated as it is.
        tiles: What it sees.
        timestep: Of 1000.
        settings: How features are compared.
        after_batch: Called with the number of tiles of each batch.

    Raises:
        UserError: A feature is not finite, or a map is too small for the bands.
        FeatureError: The model lacks the output head that the feature space needs.
    """
    adapter = adapter_for(model.restoring.restoration.model)
    tap = FeatureTap(adapter)
    measures: Measures | None = None
    for batch in tiles.batches(settings.batch_size):
        inputs = _Inputs(model, batch, timestep, settings.seed)
        with tap.record(gradients=False):
            model.restoring.restoration.predict(inputs.sample, inputs.reference, inputs.timesteps)
        maps = _maps(tap, adapter, model, inputs, settings.space)
        tap.clear()
        if measures is None:
            measures = _empty(adapter, maps, timestep, len(tiles.names), settings.bands)
        try:
            _add(measures, maps, batch, inputs, settings)
        except ValueError as error:
            raise UserError(
                f"the features cannot be compared: {error}; lower --cutoff, or take larger --tile"
            ) from error
        after_batch(len(batch))
    assert measures is not None
    return measures


class _Inputs:
    """What the model sees of a batch, the same for every model of one latent space."""

    def __init__(self, model: AnalysedModel, batch: list[Tile], timestep: int, seed: int) -> None:
        latents, device = model.restoring.restoration.latents, model.restoring.restoration.device
        hr, upsampled = stacked(batch, device)
        numbers = [tile.number for tile in batch]
        self.clean = latents.encode(hr, upsampled, indices=numbers, seed=seed)
        self.reference = latents.reference(upsampled)
        noise = normal_per_sample(self.clean.shape[1:], numbers, seed, "analysis").to(device)
        noisy = model.restoring.objective.at_timestep(self.clean, self.reference, noise, timestep)
        self.sample, self.sigmas, self.timesteps = noisy.sample, noisy.sigmas, noisy.timesteps


def _maps(tap: FeatureTap, adapter: Adapter, model: AnalysedModel, inputs: _Inputs, space: Space) -> dict[int, Tensor]:
    capture = tap.capture
    assert capture is not None
    convert = feature_space(
        capture,
        adapter,
        space,
        sample=inputs.sample,
        sigmas=inputs.sigmas,
        prediction_type=model.settings.feature_prediction,
    )
    maps = {number: convert(feature).float() for number, feature in capture.features.items()}
    for number, values in maps.items():
        if not torch.isfinite(values).all():
            raise UserError(
                f"the feature of {adapter.block_names[number]} is not finite: the model's weights are of no use"
            )
    return maps


def _empty(adapter: Adapter, maps: dict[int, Tensor], timestep: int, images: int, bands: BandSplit) -> Measures:
    names, last = adapter.block_names, max(maps)
    shape = maps[last].shape[1:]
    comparable = [number for number in maps if number != last and maps[number].shape[1:] == shape]
    others = [names[number] for number in maps if number != last and number not in comparable]
    shown = {"LR image, as input": Spectrum(bands), "clean target": Spectrum(bands)}
    shown |= {_spectrum_name(number, names): Spectrum(bands) for number in _shown_layers(len(names))}
    return Measures(
        timestep=timestep,
        count=len(names),
        teacher=names[last],
        layers=[LayerMeasures(number, names[number], PairMeans(images), PairMeans(images)) for number in comparable],
        incomparable=others,
        teacher_lf=PairMeans(images),
        teacher_hf=PairMeans(images),
        spectra=shown,
    )


def _shown_layers(count: int) -> tuple[int, ...]:
    """The first, the middle and the last layer, whose spectra are shown."""
    return (0, (count - 1) // 2, count - 1)


def _spectrum_name(number: int, names: tuple[str, ...]) -> str:
    return f"layer {number + 1} of {len(names)}"


def _add(
    measures: Measures, maps: dict[int, Tensor], batch: list[Tile], inputs: _Inputs, settings: MeasureSettings
) -> None:
    last = max(maps)
    teacher = maps[last]
    for name, spectrum in zip(
        measures.spectra,
        (inputs.reference, inputs.clean, *(maps[number] for number in _shown_layers(measures.count))),
        strict=True,
    ):
        measures.spectra[name].add(spectrum)
    for shift, pairs in _pairs(batch):
        other = teacher.roll(-shift, 0)
        if shift:
            _add_pairs(measures.teacher_lf, measures.teacher_hf, pairs, _similarity(teacher, other, settings))
        for layer in measures.layers:
            _add_pairs(layer.lf, layer.hf, pairs, _similarity(maps[layer.number], other, settings))
    if len(measures.layers) > 1:
        _add_weights(measures.layers, [maps[layer.number] for layer in measures.layers], teacher, settings)
    measures.tiles += len(batch)


def _pairs(batch: list[Tile]) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """Every tile with itself and with those of other images: the shift between them, and place, row and column."""
    for shift in range(len(batch)):
        others = [batch[(place + shift) % len(batch)] for place in range(len(batch))]
        pairs = [
            (place, tile.image, other.image)
            for place, (tile, other) in enumerate(zip(batch, others, strict=True))
            if shift == 0 or tile.image != other.image
        ]
        if pairs:
            yield shift, pairs


def _similarity(x: Tensor, y: Tensor, settings: MeasureSettings) -> tuple[list[float], list[float]]:
    found = band_similarity(x, y, bands=settings.bands, representation=settings.representation)
    return found.lf.tolist(), found.hf.tolist()


def _add_pairs(
    lf: PairMeans, hf: PairMeans, pairs: list[tuple[int, int, int]], values: tuple[list[float], list[float]]
) -> None:
    for place, row, column in pairs:
        lf.add(row, column, values[0][place])
        hf.add(row, column, values[1][place])


def _add_weights(
    layers: list[LayerMeasures], students: list[Tensor], teacher: Tensor, settings: MeasureSettings
) -> None:
    count = len(students)
    # The weights do not depend on the negatives.
    negatives = [(layer + 1) % count for layer in range(count)]
    found = framer_loss(
        students, teacher, negatives=negatives, bands=settings.bands, representation=settings.representation
    )
    for weights, values in (
        ("weight_lf", found.weight_lf * found.align_lf),
        ("weight_hf", found.weight_hf * found.align_hf),
    ):
        for layer, row in zip(layers, values.tolist(), strict=True):
            getattr(layer, weights).extend(row)
