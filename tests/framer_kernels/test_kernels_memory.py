"""The loss keeps next to nothing for the backward pass, and does not raise the peak of a training step."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import NEGATIVES

from benchmarks.full_step import step_peak
from benchmarks.memory import saved_bytes
from benchmarks.models import StepCase
from framer_kernels import BandSplit, Representation, framer_loss


@pytest.mark.parametrize("representation", ["complex", "magnitude"])
@pytest.mark.parametrize("bands", [BandSplit.radial(0.25), BandSplit.quantile(0.2)], ids=str)
def test_no_more_than_the_features_is_saved(bands: BandSplit, representation: Representation) -> None:
    shape = (2, 64, 32, 32)
    students = [torch.randn(shape, requires_grad=True) for _ in NEGATIVES]
    teacher = torch.randn(shape)

    saved = saved_bytes(
        lambda: framer_loss(
            students, teacher, negatives=NEGATIVES, bands=bands, representation=representation, backend="portable"
        ),
        without=[*students, teacher],
    )

    features = sum(x.nbytes for x in (*students, teacher))
    assert 0 < saved <= 0.01 * features


def test_the_reference_saves_spectra_which_the_measure_sees() -> None:
    shape = (2, 4, 8, 8)
    students = [torch.randn(shape, requires_grad=True) for _ in NEGATIVES]
    teacher = torch.randn(shape)

    saved = saved_bytes(
        lambda: framer_loss(students, teacher, negatives=NEGATIVES, backend="reference"), without=[*students, teacher]
    )

    assert saved > sum(x.nbytes for x in students)


def test_the_peak_of_a_checkpointed_step_stays() -> None:
    # Wide enough that a block's parameters outweigh its features, as they do in every model of this kind.
    case = StepCase(
        layers=6,
        dual_attention=3,
        batch=4,
        latent=32,
        text=20,
        heads=8,
        text_width=256,
        pooled_width=256,
        dtype=torch.bfloat16,
        checkpointing=True,
    )

    without, with_framer = (step_peak(case, framer=framer).bytes for framer in (False, True))

    numbers = (case.layers - 1) * case.batch * (8 + 5 + case.batch)
    assert without > 100e6
    assert with_framer <= 1.001 * without + 4 * numbers
