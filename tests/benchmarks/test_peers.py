"""What the benchmarks compare with computes the same loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.peers import compiled_rfft2, eager_rfft2, released_formula
from framer_kernels import BandSplit, Representation, framer_loss
from framer_kernels.selftest.rfft2 import rfft2_loss

NEGATIVES = [1, 2, 0]


def features(height: int = 6, width: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher, *noise = (torch.randn(3, 2, height, width, generator=generator, dtype=torch.float64) for _ in range(4))
    return [*(0.6 * teacher + x for x in noise), teacher]


def loss_and_gradients(function: Callable[..., Tensor], maps: list[Tensor], **settings: Any) -> list[Tensor]:
    *students, teacher = [x.clone().requires_grad_() for x in maps]
    loss = function(students, teacher, negatives=NEGATIVES, **settings)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), students)]


def reference(students: list[Tensor], teacher: Tensor, **settings: Any) -> Tensor:
    return framer_loss(students, teacher, backend="reference", **settings).loss


@pytest.mark.parametrize("representation", ["complex", "magnitude"])
@pytest.mark.parametrize(
    ("peer", "options"),
    [
        (released_formula, {"bands": BandSplit.radial(0.5)}),
        (released_formula, {"bands": BandSplit.radial(0.5), "shared_negatives": True}),
        (released_formula, {"bands": BandSplit.quantile(0.2), "shared_negatives": True}),
        (eager_rfft2, {"bands": BandSplit.radial(0.5)}),
        (eager_rfft2, {"bands": BandSplit.radial(0.5), "shared_negatives": True}),
    ],
    ids=["released", "released-shared", "released-quantile-shared", "eager", "eager-shared"],
)
def test_a_peer_is_the_reference(
    peer: Callable[..., Tensor], options: dict[str, Any], representation: Representation
) -> None:
    settings = {**options, "representation": representation}
    for maps in (features(), features(7, 5)):
        expected = loss_and_gradients(reference, maps, **settings)
        # Adding epsilon in other places than the reference does costs the peers 1e-9.
        for value, truth in zip(loss_and_gradients(peer, maps, **settings), expected, strict=True):
            torch.testing.assert_close(value, truth, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("representation", ["complex", "magnitude"])
def test_the_compiled_peer_is_the_reference(representation: Representation) -> None:
    settings = {"bands": BandSplit.radial(0.5), "representation": representation}

    found = loss_and_gradients(compiled_rfft2(), features(), **settings)

    for value, truth in zip(found, loss_and_gradients(reference, features(), **settings), strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("representation", ["complex", "magnitude"])
def test_the_form_that_the_self_test_times_is_the_reference(representation: Representation) -> None:
    settings = {"bands": BandSplit.radial(0.5), "representation": representation}

    found = loss_and_gradients(rfft2_loss, features(), **settings)

    # It computes in float32, as torch.compile users would.
    for value, truth in zip(found, loss_and_gradients(reference, features(), **settings), strict=True):
        torch.testing.assert_close(value.double(), truth, rtol=1e-3, atol=1e-5)
