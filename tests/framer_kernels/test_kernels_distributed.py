"""Several ranks on gloo equal one rank with the joined batch."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from kernel_cases import DEFINITIONS, NEGATIVES, small_features
from torch import Tensor

from framer_kernels import framer_loss, inter_contrastive_loss
from framer_kernels.distributed import GlobalBatch

SPLITS = {"even": (2, 2), "uneven": (1, 2)}
CASES = [
    (split, shared, name)
    for split in SPLITS
    for shared in (False, True)
    for name in ("radial-complex", "quantile-magnitude")
]


def run(features: list[Tensor], group: Any, shared: bool, name: str) -> dict[str, Any]:
    *students, teacher = [x.clone().requires_grad_() for x in features]
    settings: dict[str, Any] = {
        "shared_negatives": shared,
        "temperature": 0.3,
        "group": group,
        **DEFINITIONS[name],
    }
    out = framer_loss(students, teacher, negatives=NEGATIVES, **settings)
    inter = inter_contrastive_loss(students[0], teacher, students[1], **settings)
    gradients = torch.autograd.grad(out.loss.sum(), students)
    return {
        "loss": out.loss.detach(),
        "diagnostics": list(out[1:]),
        "inter": inter.detach(),
        "gradients": list(gradients),
    }


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        group = dist.group.WORLD
        results: dict[Any, Any] = {}
        for split, shared, name in CASES:
            sizes = SPLITS[split]
            first = sum(sizes[:rank])
            features = [x[first : first + sizes[rank]] for x in small_features(batch=sum(sizes))]
            results[split, shared, name] = run(features, group, shared, name)
        alone = dist.new_group([rank], use_local_synchronization=True)
        results["alone"] = run(small_features(), alone, True, "radial-complex")
        try:
            run(small_features(channels=rank + 1), group, False, "radial-complex")
        except ValueError as error:
            results["mismatch"] = str(error)
        torch.save(results, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("split", "shared", "name"), CASES)
def test_two_ranks_equal_one(ranks: list[dict[Any, Any]], split: str, shared: bool, name: str) -> None:
    sizes = SPLITS[split]
    parts = [rank[split, shared, name] for rank in ranks]

    joined = run(small_features(batch=sum(sizes)), None, shared, name)

    share = [size / sum(sizes) for size in sizes]
    loss = sum(part["loss"] * s for part, s in zip(parts, share, strict=True))
    torch.testing.assert_close(loss, joined["loss"], rtol=1e-12, atol=0)
    inter = torch.cat([part["inter"] for part in parts])
    torch.testing.assert_close(inter, joined["inter"], rtol=1e-12, atol=0)
    for field, expected in enumerate(joined["diagnostics"]):
        diagnostic = torch.cat([part["diagnostics"][field] for part in parts], dim=1)
        torch.testing.assert_close(diagnostic, expected, rtol=1e-12, atol=1e-15)
    for layer, expected in enumerate(joined["gradients"]):
        gradient = torch.cat([part["gradients"][layer] * s for part, s in zip(parts, share, strict=True)])
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-15)


def test_other_ranks_matter(ranks: list[dict[Any, Any]]) -> None:
    local = run([x[:2] for x in small_features(batch=4)], None, False, "radial-complex")

    assert not torch.isclose(ranks[0]["even", False, "radial-complex"]["loss"], local["loss"]).any()


def test_group_of_one_rank_equals_no_group(ranks: list[dict[Any, Any]]) -> None:
    expected = run(small_features(), None, True, "radial-complex")

    assert torch.equal(ranks[0]["alone"]["loss"], expected["loss"])


def test_different_channels_are_refused_on_every_rank(ranks: list[dict[Any, Any]]) -> None:
    for rank in ranks:
        assert "same C, H and W on every rank" in rank["mismatch"]
        assert "[[2, 1, 5, 6], [2, 2, 5, 6]]" in rank["mismatch"]


def test_first_row_follows_the_sizes_of_the_ranks_before() -> None:
    assert [GlobalBatch(None, (1, 3, 2), rank).first for rank in range(3)] == [0, 1, 4]
