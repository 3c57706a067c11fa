from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DEFINITIONS, NEGATIVES, closed_form, small_features
from torch import Tensor

from framer_kernels import (
    band_energy,
    band_similarity,
    framer_loss,
    inter_contrastive_loss,
    intra_contrastive_loss,
)

each_definition = pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=DEFINITIONS)


def leaves(features: list[Tensor] | Tensor) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in features]


@each_definition
@pytest.mark.parametrize("backend", ["reference", "portable"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_gradcheck_without_weights(definition: Any, shared: bool, backend: Any) -> None:
    *students, teacher = small_features(layers=3, height=4)

    def layer(x: Tensor) -> Tensor:
        # Student 0 is no one's negative here, so its whole influence on the loss has a gradient.
        maps = [x, students[1], students[0]]
        return framer_loss(
            maps,
            teacher,
            negatives=[1, 2, 1],
            temperature=0.5,
            faw=None,
            fam=False,
            shared_negatives=shared,
            backend=backend,
            **definition,
        ).loss

    assert torch.autograd.gradcheck(layer, leaves(students[:1]), eps=1e-6, atol=1e-8)


@each_definition
@pytest.mark.parametrize("faw", ["relative_student", "relative_teacher", "absolute"])
def test_gradient_is_that_of_the_loss_with_weights_held(definition: Any, faw: Any) -> None:
    *students, teacher = small_features(layers=3)
    students = leaves(students)
    settings = {"negatives": [1, 0], "temperature": 0.5, "faw": faw, **definition}
    out = framer_loss(students, teacher, **settings)
    (gradient,) = torch.autograd.grad(out.loss[0], students[0])
    w_lf, w_hf = (out.weight_lf * out.align_lf)[0], (out.weight_hf * out.align_hf)[0]
    assert (w_lf > 0).any()
    assert (w_hf > 0).any()
    assert (out.weight_lf < 1).all()

    def held(x: Tensor) -> Tensor:
        moved = framer_loss([x, students[1]], teacher, **settings)
        return (w_lf * moved.intra[0] + w_hf * moved.inter[0]).mean()

    step = 1e-6
    numeric = torch.zeros_like(gradient)
    with torch.no_grad():
        for index in range(gradient.numel()):
            delta = torch.zeros_like(gradient)
            delta.view(-1)[index] = step
            numeric.view(-1)[index] = (held(students[0] + delta) - held(students[0] - delta)) / (2 * step)
    torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-9)


@each_definition
def test_gradcheck_of_the_operations(definition: Any) -> None:
    x, negative, teacher = small_features(layers=3, height=4)
    (x,) = leaves([x])
    operations = {
        "similarity": lambda q: band_similarity(q, negative, teacher=teacher, **definition),
        "intra": lambda q: intra_contrastive_loss(q, teacher, negative, **definition),
        "inter": lambda q: inter_contrastive_loss(q, teacher, negative, **definition),
    }
    for name, operation in operations.items():
        assert torch.autograd.gradcheck(operation, (x,), eps=1e-6, atol=1e-8), name


@each_definition
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_gradient_reaches_the_query_alone(definition: Any, shared: bool) -> None:
    *students, teacher = leaves(small_features())
    out = framer_loss(students, teacher, negatives=NEGATIVES, shared_negatives=shared, **definition)

    for i in range(4):
        gradients = torch.autograd.grad(
            out.loss[i], [*students, teacher], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        reached = [k for k, gradient in enumerate(gradients) if gradient.count_nonzero() > 0]
        assert reached == [i]


def test_teacher_gets_no_gradient_even_if_it_asks_for_one() -> None:
    *students, teacher = leaves(small_features())
    out = framer_loss(students, teacher, negatives=NEGATIVES)

    out.loss.sum().backward()

    assert teacher.grad is None
    assert all(x.grad is not None and x.grad.count_nonzero() > 0 for x in students)


def test_negatives_that_require_grad_change_nothing() -> None:
    *students, teacher = small_features()
    together = leaves(students)
    framer_loss(together, teacher, negatives=NEGATIVES, shared_negatives=True).loss.sum().backward()

    for i, x in enumerate(students):
        alone = list(students)
        alone[i] = x.clone().requires_grad_()
        framer_loss(alone, teacher, negatives=NEGATIVES, shared_negatives=True).loss[i].backward()
        torch.testing.assert_close(together[i].grad, alone[i].grad, rtol=1e-12, atol=1e-15)


def test_operations_give_no_gradient_to_targets() -> None:
    x, y, teacher = leaves(small_features(layers=3))

    sum(band_similarity(x, y)).sum().backward()
    intra_contrastive_loss(x, teacher, y).sum().backward()
    inter_contrastive_loss(x, teacher, y, shared_negatives=True).sum().backward()

    assert x.grad is not None
    assert y.grad is None
    assert teacher.grad is None
    assert not band_energy(x).lf.requires_grad


def test_students_without_gradient_are_fine() -> None:
    *students, teacher = small_features()

    assert not framer_loss(students, teacher, negatives=NEGATIVES).loss.requires_grad


def test_backward_twice_gives_the_same_gradient() -> None:
    *students, teacher = closed_form()
    students = leaves(students)
    total = framer_loss(students, teacher, negatives=NEGATIVES).loss.sum()

    first = torch.autograd.grad(total, students, retain_graph=True)
    second = torch.autograd.grad(total, students)

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_definition
@pytest.mark.parametrize(("faw", "fam"), [("relative_student", True), (None, False)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zero_features_have_zero_gradient(definition: Any, faw: Any, fam: bool, dtype: torch.dtype) -> None:
    *students, teacher = [x.to(dtype) for x in small_features()]
    students[0].zero_()
    students[1][1].zero_()
    students = leaves(students)

    out = framer_loss(students, teacher, negatives=NEGATIVES, temperature=0.0075, faw=faw, fam=fam, **definition)
    out.loss.sum().backward()

    assert all(field.isfinite().all() for field in out)
    assert all(x.grad.isfinite().all() for x in students)
    assert students[0].grad.count_nonzero() == 0
    assert students[1].grad[1].count_nonzero() == 0
    assert students[1].grad[0].count_nonzero() > 0


@each_definition
def test_zero_teacher_is_finite(definition: Any) -> None:
    *students, teacher = small_features()
    students = leaves(students)

    out = framer_loss(students, torch.zeros_like(teacher), negatives=NEGATIVES, **definition)
    out.loss.sum().backward()

    assert all(field.isfinite().all() for field in out)
    assert all(x.grad.isfinite().all() for x in students)


def test_band_without_energy_leaves_the_other_band_its_gradient() -> None:
    *students, teacher = small_features(height=4, width=8)
    # A constant map's high band is zero, and exactly so where both sides are powers of two.
    students[0] = torch.ones_like(teacher).requires_grad_()

    out = framer_loss(students, teacher, negatives=NEGATIVES, faw=None, fam=False)
    out.loss[0].backward()

    assert out.align_hf[0].count_nonzero() == 0
    assert students[0].grad.isfinite().all()
    assert students[0].grad.abs().max() < 10
    assert students[0].grad.count_nonzero() > 0
