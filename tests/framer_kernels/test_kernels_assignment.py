"""Which band has which loss, against a computation from the formulas that shares nothing with the package."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from kernel_cases import NEGATIVES, closed_form, small_features
from torch import Tensor

from framer_kernels import BandAssignment, BandSplit, framer_loss

ASSIGNMENTS = get_args(BandAssignment)
OTHERS = [assignment for assignment in ASSIGNMENTS if assignment != "intra_low"]
LOSSES = {
    "intra_low": ("intra", "inter"),
    "intra_high": ("inter", "intra"),
    "intra_both": ("intra", "intra"),
    "inter_both": ("inter", "inter"),
}
TEMPERATURE = 0.3
each_assignment = pytest.mark.parametrize("assignment", ASSIGNMENTS)


def low_bins(height: int, width: int) -> list[list[bool]]:
    """Radial bands with the default cutoff."""

    def frequency(k: int, n: int) -> float:
        return 2 * (k if k < n - k else k - n) / n

    return [
        [math.hypot(frequency(y, height), frequency(x, width)) <= 0.25 for x in range(width)] for y in range(height)
    ]


def band(x: Tensor, low: bool) -> list[list[complex]]:
    """The bins of one sample's map ``[C, H, W]`` in one band, channel by channel."""
    chosen = low_bins(*x.shape[1:])
    return [
        [
            value
            for row, flags in zip(channel, chosen, strict=True)
            for value, flag in zip(row, flags, strict=True)
            if flag is low
        ]
        for channel in torch.fft.fft2(x).tolist()
    ]


def cosine(x: list[list[complex]], y: list[list[complex]]) -> float:
    def product(a: list[list[complex]], b: list[list[complex]]) -> float:
        return sum((u * v.conjugate()).real for p, q in zip(a, b, strict=True) for u, v in zip(p, q, strict=True))

    return product(x, y) / math.sqrt(product(x, x) * product(y, y))


def energy(x: list[list[complex]]) -> float:
    return sum(sum(map(abs, channel)) / (len(channel) + 1e-9) for channel in x) / len(x)


def naive(
    maps: list[Tensor], negatives: list[int], assignment: str, shared: bool, faw: bool, fam: bool
) -> tuple[list[float], list[list[list[float]]]]:
    """The loss of every layer; and that of each layer, band (low first) and sample before weighting."""
    *students, teacher = [x.double() for x in maps]
    totals, parts = [], []
    for i, j in enumerate(negatives):
        total, layer = 0.0, []
        for low, kind in zip((True, False), LOSSES[assignment], strict=True):
            x, t, n = ([band(sample, low) for sample in each] for each in (students[i], teacher, students[j]))
            losses = []
            for b in range(len(x)):
                positive = cosine(x[b], t[b])
                others = [b_other for b_other in range(len(x)) if b_other != b]
                repelling = [cosine(x[b], n[b])]
                if kind == "inter":
                    repelling += [cosine(x[b], t[b_other]) for b_other in others]
                    repelling += [cosine(x[b], n[b_other]) for b_other in others if shared]
                attraction = math.exp(positive / TEMPERATURE)
                repulsion = sum(math.exp(s / TEMPERATURE) for s in repelling)
                losses.append(-math.log(attraction / (attraction + repulsion)))
                own = energy(x[b])
                weight = 1 / (1 + abs(energy(t[b]) - own) / (own + 1e-9)) if faw else 1.0
                gate = max(positive, 0.0) if fam else 1.0
                total += weight * gate * losses[-1] / len(x)
            layer.append(losses)
        totals.append(total)
        parts.append(layer)
    return totals, parts


@each_assignment
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("faw", [True, False], ids=["faw", "no faw"])
@pytest.mark.parametrize("fam", [True, False], ids=["fam", "no fam"])
def test_equals_the_formulas(assignment: Any, shared: bool, faw: bool, fam: bool) -> None:
    maps = list(closed_form(layers=4, batch=3, channels=2, height=6, width=9))
    negatives = [1, 2, 1]

    out = framer_loss(
        maps[:3],
        maps[3],
        negatives=negatives,
        temperature=TEMPERATURE,
        shared_negatives=shared,
        faw="relative_student" if faw else None,
        fam=fam,
        assignment=assignment,
    )

    totals, parts = naive(maps, negatives, assignment, shared, faw, fam)
    torch.testing.assert_close(out.loss, torch.tensor(totals, dtype=torch.float64), rtol=1e-11, atol=0)
    low, high = torch.tensor(parts, dtype=torch.float64).unbind(dim=1)
    torch.testing.assert_close(out.intra, low, rtol=1e-11, atol=0)
    torch.testing.assert_close(out.inter, high, rtol=1e-11, atol=0)


def test_all_differ_in_the_losses_alone() -> None:
    *students, teacher = closed_form()
    # FAM would hide the losses of bands that point away from the teacher.
    results = {a: framer_loss(students, teacher, negatives=NEGATIVES, fam=False, assignment=a) for a in ASSIGNMENTS}

    for k, assignment in enumerate(ASSIGNMENTS):
        for other in ASSIGNMENTS[:k]:
            assert not torch.isclose(results[assignment].loss, results[other].loss).any()
        for found, expected in zip(results[assignment][3:], results["intra_low"][3:], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_the_default_is_framer_in_every_backend() -> None:
    *students, teacher = closed_form()

    for backend in ("auto", "portable", "reference"):
        expected = framer_loss(students, teacher, negatives=NEGATIVES, backend=backend)
        given = framer_loss(students, teacher, negatives=NEGATIVES, backend=backend, assignment="intra_low")
        assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


@pytest.mark.parametrize("assignment", OTHERS)
def test_auto_is_the_reference(assignment: Any) -> None:
    *students, teacher = closed_form()
    settings: dict[str, Any] = {"negatives": NEGATIVES, "assignment": assignment, "shared_negatives": True}

    automatic = framer_loss(students, teacher, **settings)

    assert all(
        torch.equal(a, b)
        for a, b in zip(automatic, framer_loss(students, teacher, backend="reference", **settings), strict=True)
    )


@each_assignment
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("representation", ["complex", "magnitude"])
def test_gradcheck(assignment: Any, shared: bool, representation: Any) -> None:
    *students, teacher = small_features(layers=3, height=4)

    def layer(x: Tensor) -> Tensor:
        # Student 0 is no one's negative here, and without FAW and FAM its whole influence has a gradient.
        maps = [x, students[1], students[0]]
        return framer_loss(
            maps,
            teacher,
            negatives=[1, 2, 1],
            representation=representation,
            temperature=0.5,
            faw=None,
            fam=False,
            shared_negatives=shared,
            assignment=assignment,
        ).loss

    leaf = students[0].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(layer, (leaf,), eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("assignment", OTHERS)
def test_gradient_reaches_the_query_alone(assignment: Any) -> None:
    *students, teacher = [x.clone().requires_grad_() for x in small_features()]
    out = framer_loss(students, teacher, negatives=NEGATIVES, shared_negatives=True, assignment=assignment)

    for i in range(4):
        gradients = torch.autograd.grad(
            out.loss[i], [*students, teacher], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert [k for k, gradient in enumerate(gradients) if gradient.count_nonzero() > 0] == [i]
    assert not any(field.requires_grad for field in out[1:])


def test_inter_cl_of_a_low_band_in_which_all_images_are_alike() -> None:
    *students, teacher = [x - x.mean(dim=(-2, -1), keepdim=True) + 1 for x in small_features()]
    settings: dict[str, Any] = {"negatives": NEGATIVES, "bands": BandSplit.radial(0.0), "faw": None, "fam": False}

    out = framer_loss(students, teacher, assignment="intra_high", **settings)

    # The low band is the mean alone, so all its cosines are 1: a layer and another image repel as the teacher attracts.
    torch.testing.assert_close(out.intra, torch.full_like(out.intra, math.log(3)))
    assert not torch.isclose(out.inter, torch.full_like(out.inter, math.log(2))).any()


@pytest.mark.parametrize("assignment", OTHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_features_are_computed_in_float32(assignment: Any, dtype: torch.dtype) -> None:
    rounded = [x.to(dtype) for x in small_features()]
    leaves = [x.clone().requires_grad_() for x in rounded[:-1]]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = framer_loss(leaves, rounded[-1], negatives=NEGATIVES, assignment=assignment)
    out.loss.sum().backward()

    exact = framer_loss(
        [x.double() for x in rounded[:-1]], rounded[-1].double(), negatives=NEGATIVES, assignment=assignment
    )
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss.double(), exact.loss, rtol=1e-5, atol=0)
    assert all(x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all() for x in leaves)


@pytest.mark.parametrize("assignment", OTHERS)
def test_a_batch_of_one_has_no_other_images(assignment: Any) -> None:
    *students, teacher = small_features(batch=1)

    out = framer_loss(students, teacher, negatives=NEGATIVES, shared_negatives=True, assignment=assignment)
    framer = framer_loss(students, teacher, negatives=NEGATIVES, shared_negatives=True)

    torch.testing.assert_close(out.loss, framer.loss, rtol=1e-12, atol=0)


def test_compiles_into_one_graph() -> None:
    *students, teacher = small_features()

    def total(maps: list[Tensor]) -> Tensor:
        return framer_loss(maps, teacher, negatives=NEGATIVES, assignment="inter_both").loss.sum()

    expected = total([x.clone().requires_grad_() for x in students])
    leaves = [x.clone().requires_grad_() for x in students]
    found = torch.compile(total, fullgraph=True, backend="aot_eager")(leaves)
    found.backward()

    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert all(x.grad is not None for x in leaves)


@pytest.mark.parametrize("assignment", OTHERS)
@pytest.mark.parametrize("backend", ["triton", "portable"])
def test_a_fused_backend_is_refused(assignment: Any, backend: Any) -> None:
    *students, teacher = small_features()

    with pytest.raises(
        ValueError,
        match=rf"assignment='{assignment}' is computed by the reference backend alone, got backend='{backend}'",
    ):
        framer_loss(students, teacher, negatives=NEGATIVES, assignment=assignment, backend=backend)
