"""Cases in which other packages fail, and ours does not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from framer_kernels import BandSplit, band_energy, framer_loss, inter_contrastive_loss


def maps(batch: int, channels: int = 3, height: int = 8, width: int = 8, layers: int = 3) -> list[Tensor]:
    """Students and teacher in float64; the last is the teacher."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, height, width)
    teacher, *noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(layers + 1))
    return [*(0.6 * teacher + x for x in noise), teacher]


def loss_and_gradients(features: list[Tensor], **settings: Any) -> list[Tensor]:
    *students, teacher = [x.detach().clone().requires_grad_() for x in features]
    negatives = [(i + 1) % len(students) for i in range(len(students))]
    loss = framer_loss(students, teacher, negatives=negatives, **settings).loss
    return [loss.detach(), *torch.autograd.grad(loss.sum(), students)]


LARGE = (1, 2**14 + 1, 32, 32)
"""More than 2**24 elements, of which torch.quantile, and with it the released script, takes no quantile."""


def test_quantile_bands_of_more_than_2_to_the_24_elements() -> None:
    teacher = torch.randn(LARGE, generator=torch.Generator().manual_seed(0))
    bands = BandSplit.quantile(0.2)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(teacher.flatten(1), bands.value, dim=1)

    energy = band_energy(teacher, bands=bands, teacher=teacher, backend="portable")

    # White noise: magnitudes are Rayleigh, with the square root of half of all bins of a map as scale.
    scale = (32 * 32 / 2) ** 0.5
    threshold, mean = scale * (-2 * math.log(0.8)) ** 0.5, scale * (math.pi / 2) ** 0.5
    assert 0 < float(energy.lf) < threshold < float(energy.hf)
    assert abs(0.2 * float(energy.lf) + 0.8 * float(energy.hf) - mean) <= 0.02 * mean


@pytest.mark.slow
def test_the_loss_of_more_than_2_to_the_24_elements() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, *students = (torch.randn(LARGE, generator=generator) for _ in range(3))

    loss = framer_loss(
        [x.requires_grad_() for x in students],
        teacher,
        negatives=[1, 0],
        bands=BandSplit.quantile(0.2),
        backend="portable",
    ).loss
    loss.sum().backward()

    assert torch.isfinite(loss).all()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() and x.grad.any() for x in students)


@pytest.mark.parametrize("backend", ["portable", "reference"])
def test_very_negative_logits_at_a_low_temperature(backend: Any) -> None:
    # Cosines near -1 over 0.0075 are logits of -133: their exponentials are zero in float32.
    teacher = maps(3)[-1]
    features = [(-teacher + 0.01 * x) for x in maps(3)[:-1]] + [teacher]
    settings = {"temperature": 0.0075, "fam": False}
    expected = loss_and_gradients(features, backend="reference", **settings)

    exact = loss_and_gradients(features, backend=backend, **settings)
    rounded = loss_and_gradients([x.float() for x in features], backend=backend, **settings)

    assert float(expected[0].max()) > 50
    for value, single, truth in zip(exact, rounded, expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-12)
        assert torch.isfinite(single).all()
        # The error of a float32 cosine, 1e-7, is divided by the temperature.
        assert float((single.double() - truth).abs().max()) <= 1e-3 * float(truth.abs().max())


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_ragged_rows_with_nothing_but_very_negative_logits(batch: int) -> None:
    # A batch that fills no tile, and of one: no in-batch negative at all.
    teacher = maps(batch)[-1]
    student = (-teacher).requires_grad_()

    loss = inter_contrastive_loss(student, teacher, teacher, temperature=0.0075, backend="portable")

    assert torch.isfinite(loss).all()
    assert torch.isfinite(torch.autograd.grad(loss.sum(), student)[0]).all()


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.0075])
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_the_gradient_has_no_hidden_scale(batch: int, temperature: float) -> None:
    features = maps(batch)

    found = loss_and_gradients(features, temperature=temperature, backend="portable")

    for value, truth in zip(
        found, loss_and_gradients(features, temperature=temperature, backend="reference"), strict=True
    ):
        torch.testing.assert_close(value, truth, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("bands", [BandSplit.radial(0.25), BandSplit.quantile(0.2)], ids=str)
@pytest.mark.parametrize("representation", ["complex", "magnitude"])
def test_a_number_of_channels_that_nothing_divides(representation: Any, bands: BandSplit) -> None:
    features = maps(2, channels=17, height=9, width=11)
    settings = {"bands": bands, "representation": representation}

    found = loss_and_gradients(features, backend="portable", **settings)

    for value, truth in zip(found, loss_and_gradients(features, backend="reference", **settings), strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-13)
