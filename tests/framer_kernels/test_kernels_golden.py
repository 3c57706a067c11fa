from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DEFINITIONS, NEGATIVES, closed_form

from framer_kernels import (
    BandSplit,
    FramerLoss,
    band_energy,
    band_similarity,
    framer_loss,
    inter_contrastive_loss,
    intra_contrastive_loss,
)

RADIAL = BandSplit.radial(0.25)
GOLDEN: list[tuple[str, dict[str, Any], list[float]]] = [
    (
        "radial, complex",
        {"bands": RADIAL, "representation": "complex"},
        [0.0105298800, 0.0734766295, 0.5394897469, 0.1847107945],
    ),
    (
        "radial, magnitude",
        {"bands": RADIAL, "representation": "magnitude"},
        [0.4564544161, 0.6493912603, 1.0172692370, 1.2662650117],
    ),
    (
        "quantile, magnitude, shared negatives",
        {"bands": BandSplit.quantile(0.2), "representation": "magnitude", "shared_negatives": True},
        [0.4438949061, 0.6244901452, 0.8732644395, 1.1240753050],
    ),
    (
        "radial, complex, no FAW, no FAM",
        {"bands": RADIAL, "representation": "complex", "faw": None, "fam": False},
        [2.3044882847, 2.0461613304, 2.1257273428, 1.6412304294],
    ),
]


@pytest.mark.parametrize("backend", ["reference", "portable"])
@pytest.mark.parametrize(("settings", "expected"), [case[1:] for case in GOLDEN], ids=[case[0] for case in GOLDEN])
def test_golden_numbers(settings: dict[str, Any], expected: list[float], backend: Any) -> None:
    *students, teacher = closed_form()

    out = framer_loss(students, teacher, negatives=NEGATIVES, backend=backend, **settings)

    # The numbers are printed with 10 decimals.
    torch.testing.assert_close(out.loss, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


def test_defaults_are_the_first_golden_case() -> None:
    *students, teacher = closed_form()

    out = framer_loss(students, teacher, negatives=NEGATIVES)

    torch.testing.assert_close(out.loss, torch.tensor(GOLDEN[0][2], dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("faw", ["relative_student", "relative_teacher", "absolute", None])
@pytest.mark.parametrize("fam", [True, False])
def test_diagnostics_make_up_the_loss(faw: Any, fam: bool) -> None:
    *students, teacher = [x.clone().requires_grad_() for x in closed_form()]

    out = framer_loss(students, teacher, negatives=NEGATIVES, faw=faw, fam=fam)

    a_lf, a_hf = (out.align_lf, out.align_hf) if fam else (1.0, 1.0)
    per_sample = out.weight_lf * a_lf * out.intra + out.weight_hf * a_hf * out.inter
    torch.testing.assert_close(out.loss, per_sample.mean(dim=1), rtol=1e-14, atol=0)
    assert all(field.shape == (4, 3) and field.dtype == torch.float64 for field in out[1:])
    assert not any(field.requires_grad for field in out[1:])


@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=DEFINITIONS)
@pytest.mark.parametrize("shared", [False, True])
def test_diagnostics_are_what_the_operations_give(definition: Any, shared: bool) -> None:
    *students, teacher = closed_form(batch=2, channels=2, height=7, width=10)

    out = framer_loss(students, teacher, negatives=NEGATIVES, temperature=0.3, shared_negatives=shared, **definition)

    for i, x in enumerate(students):
        x_j = students[NEGATIVES[i]]
        energy = band_energy(x, bands=definition["bands"], teacher=teacher)
        similarity = band_similarity(x, teacher, teacher=teacher, **definition)
        expected = {
            "intra": intra_contrastive_loss(x, teacher, x_j, temperature=0.3, **definition),
            "inter": inter_contrastive_loss(x, teacher, x_j, temperature=0.3, shared_negatives=shared, **definition),
            "energy_lf": energy.lf,
            "energy_hf": energy.hf,
            "align_lf": similarity.lf.clamp(min=0),
            "align_hf": similarity.hf.clamp(min=0),
        }
        for field, value in expected.items():
            torch.testing.assert_close(getattr(out, field)[i], value, rtol=1e-13, atol=1e-15)


def test_align_reports_the_similarity_without_fam() -> None:
    *students, teacher = closed_form()

    with_fam = framer_loss(students, teacher, negatives=NEGATIVES)
    without = framer_loss(students, teacher, negatives=NEGATIVES, fam=False)

    assert torch.equal(with_fam.align_lf, without.align_lf)
    assert torch.equal(with_fam.align_hf, without.align_hf)
    assert not torch.equal(with_fam.loss, without.loss)


def test_faw_weights_follow_their_equations() -> None:
    *students, teacher = closed_form()
    e_t = band_energy(teacher).lf

    def run(faw: Any) -> FramerLoss:
        return framer_loss(students, teacher, negatives=NEGATIVES, faw=faw)

    e_x = run(None).energy_lf
    difference = (e_t - e_x).abs()
    torch.testing.assert_close(run("relative_student").weight_lf, 1 / (1 + difference / (e_x + 1e-9)))
    torch.testing.assert_close(run("relative_teacher").weight_lf, 1 / (1 + difference / (e_t + 1e-9)))
    torch.testing.assert_close(run("absolute").weight_lf, 1 / (1 + difference))
    assert torch.equal(run(None).weight_lf, torch.ones_like(e_x))


@pytest.mark.parametrize("faw", ["relative_student", "relative_teacher", "absolute"])
def test_faw_weight_of_a_band_that_is_empty_on_both_sides(faw: Any) -> None:
    zero = torch.zeros(2, 1, 4, 4, dtype=torch.float64)

    out = framer_loss([zero, zero], zero, negatives=[1, 0], faw=faw)

    assert torch.equal(out.weight_hf, torch.ones_like(out.weight_hf))


def test_a_layer_that_equals_the_teacher_has_full_weight_and_alignment() -> None:
    *students, teacher = closed_form()
    students[2] = teacher.clone()

    out = framer_loss(students, teacher, negatives=NEGATIVES)

    ones = torch.ones(3, dtype=torch.float64)
    for field in (out.weight_lf, out.weight_hf, out.align_lf, out.align_hf):
        torch.testing.assert_close(field[2], ones, rtol=0, atol=1e-12)


def test_layers_may_share_a_negative() -> None:
    *students, teacher = closed_form()

    cycle = framer_loss(students, teacher, negatives=[1, 2, 3, 0], shared_negatives=True)
    repeated = framer_loss(students, teacher, negatives=[1, 0, 1, 0], shared_negatives=True)

    assert torch.equal(cycle.loss[[0, 3]], repeated.loss[[0, 3]])
    assert not torch.isclose(cycle.loss[1:3], repeated.loss[1:3]).any()
