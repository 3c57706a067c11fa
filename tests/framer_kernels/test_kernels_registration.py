"""The operators are known to `torch.library`: compiled without graph breaks, traced with fakes, checked by opcheck."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DEFINITIONS, NEGATIVES, small_features
from torch import Tensor

from framer_kernels import band_energy, band_similarity, framer_loss, inter_contrastive_loss
from framer_kernels.ops.band_energy import autograd as energy_operator
from framer_kernels.ops.contrastive import autograd as contrastive_operator
from framer_kernels.ops.similarity import autograd as similarity_operator


def features(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [x.to(dtype) for x in small_features()]


@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=DEFINITIONS)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_opcheck_of_the_loss(definition: Any, shared: bool) -> None:
    *students, teacher = features()
    students = [x.requires_grad_() for x in students]
    bands = definition["bands"]
    settings = (NEGATIVES, bands.kind, bands.value, definition["representation"])
    rest = ("portable", "ieee", "", "gather")
    sizes = torch.empty(0, dtype=torch.int64)

    torch.library.opcheck(
        contrastive_operator.contrastive_loss,
        (students, teacher, *settings, 0.5, shared, "absolute", True, "both", *rest, True, False),
    )
    _, _, packed, _ = contrastive_operator.contrastive_loss(
        students, teacher, *settings, 0.5, shared, "", True, "both", *rest, True, True
    )
    torch.library.opcheck(
        contrastive_operator.contrastive_loss_backward,
        (
            torch.rand(4),
            [x.detach() for x in students],
            teacher,
            packed.detach(),
            sizes,
            [0, 3],
            *settings,
            shared,
            *rest,
        ),
    )


@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=DEFINITIONS)
def test_opcheck_of_the_others(definition: Any) -> None:
    x, y, teacher = features()[:3]
    x.requires_grad_()
    bands = definition["bands"]
    settings = (bands.kind, bands.value, definition["representation"], "portable", "ieee")

    torch.library.opcheck(similarity_operator.band_similarity, (x, y, teacher, *settings))
    _, packed = similarity_operator.band_similarity(x, y, teacher, *settings)
    torch.library.opcheck(
        similarity_operator.band_similarity_backward,
        (torch.rand(2, 2), x.detach(), y, teacher, packed.detach(), *settings),
    )
    torch.library.opcheck(energy_operator.band_energy, (y, teacher, bands.kind, bands.value, "portable", "ieee"))


def test_compiles_into_one_graph() -> None:
    *students, teacher = features()

    def total(maps: list[Tensor]) -> Tensor:
        out = framer_loss([2 * x for x in maps], teacher, negatives=NEGATIVES)
        inter = inter_contrastive_loss(maps[0], teacher, maps[1])
        similarity = band_similarity(maps[2], teacher)
        return out.loss.sum() + out.intra.sum() + inter.sum() + similarity.lf.sum() + band_energy(maps[0]).hf.sum()

    def gradients(function: Any) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in students]
        value = function(leaves)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    expected = gradients(total)
    found = gradients(torch.compile(total, fullgraph=True, backend="aot_eager"))

    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_the_graph_keeps_inputs_and_small_numbers_only() -> None:
    *students, teacher = features()
    students = [x.requires_grad_() for x in students]
    known = {x.untyped_storage().data_ptr() for x in (*students, teacher)}
    others: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in known:
            others.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        framer_loss(students, teacher, negatives=NEGATIVES)

    layers, size = 4, 2
    assert sum(x.numel() for x in others) <= layers * size * (5 + size) + layers
