"""Several ranks on gloo equal one rank with the joined batch."""

from __future__ import annotations

import weakref
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from kernel_cases import DEFINITIONS, NEGATIVES, small_features
from torch import Tensor

from framer_kernels import framer_loss, inter_contrastive_loss
from framer_kernels.bands import DEFAULT_BANDS
from framer_kernels.distributed import CommonSettings, GlobalBatch

SPLITS = {2: [(2, 2), (1, 3)], 3: [(2, 1, 3)], 4: [(1, 2, 1, 3)]}
"""Sizes of the ranks' batches, by number of ranks."""
SETTINGS = [
    (shared, name, backend, mode)
    for shared in (False, True)
    for name in ("radial-complex", "radial-magnitude", "quantile-magnitude")
    for backend, mode in (("portable", "gather"), ("portable", "ring"), ("reference", "gather"))
]
CASES = [(sizes, *setting) for splits in SPLITS.values() for sizes in splits for setting in SETTINGS]


ASSIGNED = [
    (shared, assignment, mode)
    for shared in (False, True)
    for assignment in ("intra_high", "intra_both", "inter_both")
    for mode in ("gather", "ring")
]


def run_assigned(features: list[Tensor], group: Any, shared: bool, assignment: str, mode: str) -> dict[str, Any]:
    *students, teacher = [x.clone().requires_grad_() for x in features]
    out = framer_loss(
        students,
        teacher,
        negatives=NEGATIVES,
        temperature=0.3,
        shared_negatives=shared,
        assignment=assignment,  # type: ignore[arg-type]
        group=group,
        group_mode=mode,  # type: ignore[arg-type]
    )
    gradients = torch.autograd.grad(out.loss.sum(), students)
    return {"loss": out.loss.detach(), "diagnostics": list(out[1:]), "gradients": list(gradients)}


def run(
    features: list[Tensor], group: Any, shared: bool, name: str, backend: str = "portable", mode: str = "gather"
) -> dict[str, Any]:
    *students, teacher = [x.clone().requires_grad_() for x in features]
    settings: dict[str, Any] = {
        "shared_negatives": shared,
        "temperature": 0.3,
        "group": group,
        "backend": backend,
        "group_mode": mode,
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


def worker(rank: int, folder: str, world_size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    try:
        group = dist.group.WORLD
        results: dict[Any, Any] = {}
        for sizes in SPLITS[world_size]:
            first = sum(sizes[:rank])
            features = [x[first : first + sizes[rank]] for x in small_features(batch=sum(sizes))]
            for setting in SETTINGS:
                results[sizes, *setting] = run(features, group, *setting)
            for setting in ASSIGNED if world_size == 2 else ():
                results[sizes, *setting] = run_assigned(features, group, *setting)
        alone = dist.new_group([rank], use_local_synchronization=True)
        results["alone"] = run(small_features(), alone, True, "radial-complex")
        results["compiled"] = run_compiled(features, group)
        try:
            run(small_features(channels=rank + 1), group, False, "radial-complex")
        except ValueError as error:
            results["mismatch"] = str(error)
        torch.save(results, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_compiled(features: list[Tensor], group: Any) -> Tensor:
    *students, teacher = features

    def total(maps: list[Tensor]) -> Tensor:
        return framer_loss(maps, teacher, negatives=NEGATIVES, group=group).loss

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    result: Tensor = compiled([x.clone().requires_grad_() for x in students])
    result.sum().backward()
    return result.detach()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[Any, Any]]]:
    found = {}
    for size in SPLITS:
        folder = tmp_path_factory.mktemp("gloo")
        torch.multiprocessing.spawn(worker, args=(str(folder), size), nprocs=size)
        found[size] = [torch.load(folder / f"rank{rank}.pt") for rank in range(size)]
    return found


@pytest.fixture(scope="module")
def ranks(worlds: dict[int, list[dict[Any, Any]]]) -> list[dict[Any, Any]]:
    return worlds[2]


@pytest.mark.parametrize(("sizes", "shared", "name", "backend", "mode"), CASES)
def test_ranks_equal_one(
    worlds: dict[int, list[dict[Any, Any]]], sizes: tuple[int, ...], shared: bool, name: str, backend: str, mode: str
) -> None:
    parts = [rank[sizes, shared, name, backend, mode] for rank in worlds[len(sizes)]]

    joined = run(small_features(batch=sum(sizes)), None, shared, name, "reference")

    share = [size / sum(sizes) for size in sizes]
    loss = sum(part["loss"] * s for part, s in zip(parts, share, strict=True))
    torch.testing.assert_close(loss, joined["loss"], rtol=1e-12, atol=0)
    inter = torch.cat([part["inter"] for part in parts])
    torch.testing.assert_close(inter, joined["inter"], rtol=1e-12, atol=0)
    assert_diagnostics_and_gradients(parts, joined, share)


@pytest.mark.parametrize("sizes", SPLITS[2])
@pytest.mark.parametrize(("shared", "assignment", "mode"), ASSIGNED)
def test_ranks_equal_one_with_other_assignments(
    ranks: list[dict[Any, Any]], sizes: tuple[int, ...], shared: bool, assignment: str, mode: str
) -> None:
    parts = [rank[sizes, shared, assignment, mode] for rank in ranks]

    joined = run_assigned(small_features(batch=sum(sizes)), None, shared, assignment, mode)

    share = [size / sum(sizes) for size in sizes]
    loss = sum(part["loss"] * s for part, s in zip(parts, share, strict=True))
    torch.testing.assert_close(loss, joined["loss"], rtol=1e-12, atol=0)
    assert_diagnostics_and_gradients(parts, joined, share)


def assert_diagnostics_and_gradients(parts: list[dict[str, Any]], joined: dict[str, Any], share: list[float]) -> None:
    for field, expected in enumerate(joined["diagnostics"]):
        diagnostic = torch.cat([part["diagnostics"][field] for part in parts], dim=1)
        torch.testing.assert_close(diagnostic, expected, rtol=1e-11, atol=1e-15)
    for layer, expected in enumerate(joined["gradients"]):
        gradient = torch.cat([part["gradients"][layer] * s for part, s in zip(parts, share, strict=True)])
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-15)


def test_other_ranks_matter(ranks: list[dict[Any, Any]]) -> None:
    local = run([x[:2] for x in small_features(batch=4)], None, False, "radial-complex")

    assert not torch.isclose(
        ranks[0][(2, 2), False, "radial-complex", "portable", "gather"]["loss"], local["loss"]
    ).any()


def test_compiled_with_a_group(ranks: list[dict[Any, Any]]) -> None:
    whole = small_features(batch=4)
    joined = framer_loss(whole[:4], whole[4], negatives=NEGATIVES).loss

    mean = ranks[0]["compiled"] / 4 + ranks[1]["compiled"] * 3 / 4  # of the last split, (1, 3)
    torch.testing.assert_close(mean, joined, rtol=1e-12, atol=0)


def ring_worker(rank: int, folder: str, world_size: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    try:
        own = torch.full((2, 1, 4, 4), float(rank))
        settings = CommonSettings(
            "framer_loss", (1, 0), DEFAULT_BANDS, "complex", 1.0, False, None, True, False, "ieee", "ring"
        )
        batch = GlobalBatch.of(own, dist.group.WORLD, settings, differentiated=False)
        alive: list[Any] = []
        most = 0
        owners = []
        for places, (received,) in batch.remote((own,), "ring"):
            alive.append(weakref.ref(received.untyped_storage()))
            most = max(most, sum(storage() is not None for storage in alive))
            owners.append((places.start, float(received[0, 0, 0, 0])))
            del received
        torch.save((most, owners), Path(folder) / f"ring{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_ring_holds_one_shard_of_another_rank_however_many_there_are(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(ring_worker, args=(str(tmp_path), 4), nprocs=4)

    for rank in range(4):
        most, owners = torch.load(tmp_path / f"ring{rank}.pt")
        assert most <= 2  # the one worked on, and the one being sent or received
        assert sorted(owners) == [(2 * other, float(other)) for other in range(4) if other != rank]


def test_group_of_one_rank_equals_no_group(ranks: list[dict[Any, Any]]) -> None:
    expected = run(small_features(), None, True, "radial-complex")

    assert torch.equal(ranks[0]["alone"]["loss"], expected["loss"])


def test_different_channels_are_refused_on_every_rank(ranks: list[dict[Any, Any]]) -> None:
    for rank in ranks:
        assert "same C, H and W on every rank" in rank["mismatch"]
        assert "[[2, 1, 5, 6], [2, 2, 5, 6]]" in rank["mismatch"]


def test_first_row_follows_the_sizes_of_the_ranks_before() -> None:
    assert [GlobalBatch(None, (1, 3, 2), rank).first for rank in range(3)] == [0, 1, 4]
