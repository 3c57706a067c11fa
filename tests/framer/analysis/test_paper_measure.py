"""What is measured of a model, against what its parts say one by one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from framer import Framer, FramerConfig
from framer.analysis.paper.measure import AnalysedModel, Measures, MeasureSettings, check_space, load_model, measure
from framer.analysis.paper.spectra import BINS, HIGHEST, Spectrum
from framer.analysis.paper.tiles import Tiles, cut_tiles
from framer.data.photographs import bundled_photographs
from framer.errors import UserError
from framer.models.folders import BASE_FOLDER
from framer.seeding import normal_per_sample
from framer_kernels import BandSplit, band_similarity, framer_loss

BANDS = BandSplit.radial(0.25)


@cache
def base() -> AnalysedModel:
    return load_model(BASE_FOLDER, torch.device("cpu"))


@cache
def four_tiles() -> Tiles:
    return cut_tiles(bundled_photographs("heldout")[:2], tile=64, scale=4, degradation="heavy", seed=0, most=4)


def settings(batch_size: int = 4) -> MeasureSettings:
    return MeasureSettings("hidden", BANDS, "complex", batch_size, 0)


@cache
def measured() -> Measures:
    seen: list[int] = []
    found = measure(base(), four_tiles(), 300, settings(), after_batch=seen.append)
    assert sum(seen) == found.tiles == 4
    return found


@cache
def features() -> tuple[list[Tensor], Tensor]:
    """The base model's maps on the same tiles, by way of FRAMER's own capture."""
    model, tiles = base().restoring.restoration, four_tiles().tiles
    hr, upsampled = (torch.stack([getattr(tile, name) for tile in tiles]) for name in ("hr", "upsampled"))
    noise = normal_per_sample(hr.shape[1:], [tile.number for tile in tiles], 0, "analysis")
    noisy = base().restoring.objective.at_timestep(
        model.latents.encode(hr, upsampled, indices=[], seed=0), upsampled, noise, 300
    )
    framer = Framer(model.model, FramerConfig())
    with framer.capture():
        model.predict(noisy.sample, upsampled, noisy.timesteps)
    found = framer.features()
    framer.detach()
    return [student.detach() for student in found.students], found.teacher


def test_similarities_of_own_and_other_images_are_those_of_framers_features() -> None:
    students, teacher = features()
    images = np.array([tile.image for tile in four_tiles().tiles])
    assert [layer.number for layer in measured().layers] == list(range(7))
    for layer, student in zip(measured().layers, students, strict=True):
        pairs = np.array(
            [
                [float(band_similarity(student[b : b + 1], teacher[c : c + 1], bands=BANDS).hf) for c in range(4)]
                for b in range(4)
            ]
        )
        assert layer.hf.mean(same=True) == pytest.approx(pairs.diagonal().mean(), abs=1e-4)
        assert layer.hf.mean(same=False) == pytest.approx(pairs[images[:, None] != images[None]].mean(), abs=1e-4)
        expected = pairs[np.ix_(images == 0, images == 1)].mean()
        assert layer.hf.matrix[0, 1] == pytest.approx(expected, abs=1e-4)


def test_the_last_layer_is_compared_between_images_alone() -> None:
    matrix = measured().teacher_lf.matrix
    assert np.isnan(matrix.diagonal()).all()
    _, teacher = features()
    first, second = ([n for n, tile in enumerate(four_tiles().tiles) if tile.image == image] for image in (0, 1))
    pairs = [
        float(band_similarity(teacher[b : b + 1], teacher[c : c + 1], bands=BANDS).lf) for b in first for c in second
    ]
    assert matrix[0, 1] == pytest.approx(np.mean(pairs), abs=1e-4)
    assert matrix[0, 1] == pytest.approx(matrix[1, 0], abs=1e-6)


def test_weights_are_faw_times_fam() -> None:
    students, teacher = features()
    loss = framer_loss(students, teacher, negatives=[1, 2, 3, 4, 5, 6, 0], bands=BANDS)
    for layer, expected in zip(measured().layers, loss.weight_lf * loss.align_lf, strict=True):
        # Tiles come batch by batch, in another order.
        assert sorted(layer.weight_lf) == pytest.approx(sorted(expected.tolist()), abs=1e-4)


def test_nothing_depends_on_the_batch_but_which_images_meet() -> None:
    one_by_one = measure(base(), four_tiles(), 300, settings(batch_size=1), after_batch=lambda _: None)
    for layer, other in zip(measured().layers, one_by_one.layers, strict=True):
        assert layer.lf.mean(same=True) == pytest.approx(other.lf.mean(same=True), abs=1e-5)
        assert other.lf.mean(same=False) is None
    name = next(iter(measured().spectra))
    assert (measured().spectra[name].lf == one_by_one.spectra[name].lf).all()


def test_a_spectrum_counts_every_bin_of_every_map_in_its_band() -> None:
    spectrum = Spectrum(BANDS)
    maps = torch.zeros(2, 3, 8, 8)
    maps[:, :, :, :] = 1.0  # a constant map: 64 at zero frequency, 0 elsewhere
    spectrum.add(maps)
    low = int(BANDS.radial_mask(8, 8, torch.device("cpu")).sum())
    assert spectrum.lf.sum() == 6 * low
    assert spectrum.hf.sum() == 6 * (64 - low)
    assert spectrum.hf[0] == spectrum.hf.sum()
    assert spectrum.lf[int(np.log(65) * BINS / HIGHEST)] == 6
    assert spectrum.density("lf").sum() * HIGHEST / BINS == pytest.approx(1.0)


def test_a_feature_space_that_undoes_flow_matchings_noise_is_refused_elsewhere() -> None:
    check_space("x0", "flow_matching")
    with pytest.raises(UserError, match=r"--feature-space x0: the model was trained with objective\.type one_step"):
        check_space("x0", "one_step")


def test_bands_that_the_maps_do_not_have_are_refused() -> None:
    wide = MeasureSettings("hidden", BandSplit.radial(1.414), "complex", 4, 0)
    small = cut_tiles(bundled_photographs("heldout")[:1], tile=36, scale=4, degradation="heavy", seed=0, most=1)
    with pytest.raises(UserError, match="lower --cutoff"):
        measure(base(), small, 300, wide, after_batch=lambda _: None)
