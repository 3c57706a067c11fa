"""Ranks that would wait for one another for ever, or compare unlike things, are told so, every one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from kernel_cases import NEGATIVES, small_features
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from framer_kernels import BandSplit, framer_loss, inter_contrastive_loss

RANKS = 2
SIZES = (1, 3)
# What rank 1 does otherwise than rank 0, and what every rank's error says.
DISAGREEMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"dtype": torch.float32}, "dtype"),
    "layers": ({"layers": 3, "negatives": [1, 2, 0]}, "negatives"),
    "negatives": ({"negatives": [3, 2, 1, 0]}, "negatives"),
    "cutoff": ({"bands": BandSplit.radial(0.5)}, "bands"),
    "bands": ({"bands": BandSplit.quantile(0.2)}, "bands"),
    "representation": ({"representation": "magnitude"}, "representation"),
    "temperature": ({"temperature": 0.3}, "temperature"),
    "faw": ({"faw": None}, "faw"),
    "fam": ({"fam": False}, "fam"),
    "shared_negatives": ({"shared_negatives": True}, "shared_negatives"),
    "group_mode": ({"group_mode": "ring"}, "group_mode"),
    "precision": ({"precision": "ieee"}, "precision"),
    "assignment": ({"backend": "auto", "assignment": "inter_both"}, "assignment"),
    "reference": ({"backend": "reference"}, "reference"),
    "operation": ({"operation": "inter"}, "operation"),
    "gradient": ({"frozen": range(4)}, "students need a gradient on some ranks"),
    "no_grad": ({"no_grad": True}, "students need a gradient on some ranks"),
}


def call(features: list[Tensor], group: Any, **changes: Any) -> tuple[Tensor, list[Tensor]]:
    frozen = changes.pop("frozen", ())
    layers = changes.pop("layers", 4)
    dtype = changes.pop("dtype", torch.float64)
    operation = changes.pop("operation", "loss")
    *students, teacher = [x.to(dtype) for x in features]
    students = [x.clone().requires_grad_(i not in frozen) for i, x in enumerate(students[:layers])]
    settings: dict[str, Any] = {"group": group, "backend": "portable", **changes}
    with torch.set_grad_enabled(not settings.pop("no_grad", False)):
        if operation == "inter":
            return inter_contrastive_loss(students[0], teacher, students[1], **settings), students
        negatives = settings.pop("negatives", NEGATIVES)
        return framer_loss(students, teacher, negatives=negatives, **settings).loss, students


def partly_frozen(features: list[Tensor], group: Any, rank: int, mode: str) -> list[Tensor | None]:
    """Gradients where every rank has frozen other layers, the negatives of no layer in need among them."""
    loss, students = call(
        features, group, frozen=[(0, 1), (2,)][rank], shared_negatives=True, temperature=0.3, group_mode=mode
    )
    loss.sum().backward()
    return [x.grad for x in students]


def collectives_of_a_step(features: list[Tensor], group: Any) -> list[tuple[list[torch.dtype], int]]:
    """Dtypes gathered, and waits for numbers of the device, in the forward and in the backward pass."""
    gathered: list[torch.dtype] = []
    gather, to_list = dist.all_gather, Tensor.tolist
    waits = 0

    def counted(parts: list[Tensor], own: Tensor, **options: Any) -> Any:
        gathered.append(own.dtype)
        return gather(parts, own, **options)

    def counted_wait(x: Tensor) -> Any:
        nonlocal waits
        # The handshake is a matrix; the sizes that the backward pass reads are on the CPU on every machine.
        waits += x.dim() == 2
        return to_list(x)

    dist.all_gather, Tensor.tolist = counted, counted_wait  # type: ignore[method-assign, assignment]
    try:
        loss, _ = call(features, group)
        forward = (list(gathered), waits)
        gathered.clear()
        waits = 0
        loss.sum().backward()
        return [forward, (gathered, waits)]
    finally:
        dist.all_gather, Tensor.tolist = gather, to_list  # type: ignore[method-assign]


def fake_shapes(features: list[Tensor], group: Any, shared: bool) -> list[list[int]]:
    mode = FakeTensorMode()
    *students, teacher = [mode.from_tensor(x) for x in features]
    with mode:
        students = [x.requires_grad_() for x in students]
        out = framer_loss(students, teacher, negatives=NEGATIVES, group=group, shared_negatives=shared)
        inter = inter_contrastive_loss(students[0], teacher, students[1], group=group)
        gradients = torch.autograd.grad(out.loss.sum() + inter.sum(), students)
    return [list(x.shape) for x in (*out, inter, *gradients)]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    try:
        group = dist.group.WORLD
        first = sum(SIZES[:rank])
        features = [x[first : first + SIZES[rank]] for x in small_features(batch=sum(SIZES))]
        results: dict[str, Any] = {}
        for backend in ("portable", "reference"):
            for name, (changes, _) in DISAGREEMENTS.items():
                try:
                    call(features, group, **{"backend": backend, **(changes if rank == 1 else {})})
                except ValueError as error:
                    results[backend, name] = str(error)
        for mode in ("gather", "ring"):
            results[f"frozen {mode}"] = partly_frozen(features, group, rank, mode)
        results["collectives"] = collectives_of_a_step(features, group)
        results["fake"] = {shared: fake_shapes(features, group, shared) for shared in (False, True)}
        # Nothing is left over from all this that a rank waits for.
        results["loss"] = call(features, group)[0].detach()
        torch.save(results, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(worker, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize(
    ("backend", "name"),
    [(b, name) for b in ("portable", "reference") for name in DISAGREEMENTS if (b, name) != ("reference", "reference")],
)
def test_every_rank_is_told_what_differs(ranks: list[dict[Any, Any]], backend: str, name: str) -> None:
    for rank in ranks:
        assert DISAGREEMENTS[name][1] in rank[backend, name]


def test_the_message_names_ranks_and_values(ranks: list[dict[Any, Any]]) -> None:
    for rank, value in zip(ranks, (1.0, 0.3), strict=True):
        message = rank["portable", "temperature"]
        assert message.endswith(f"differ in temperature (other ranks than 0: [1]; on this rank: {value})")
        assert "by rank: [True, False]" in rank["portable", "gradient"]


def test_ranks_agree_again_afterwards(ranks: list[dict[Any, Any]]) -> None:
    joined, _ = call(small_features(batch=sum(SIZES)), None)

    mean = sum(rank["loss"] * size / sum(SIZES) for rank, size in zip(ranks, SIZES, strict=True))
    torch.testing.assert_close(mean, joined.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["gather", "ring"])
def test_every_rank_may_freeze_layers_of_its_own(ranks: list[dict[Any, Any]], mode: str) -> None:
    loss, students = call(small_features(batch=sum(SIZES)), None, shared_negatives=True, temperature=0.3)
    expected = torch.autograd.grad(loss.sum(), students)

    first = 0
    for rank, frozen, size in zip(ranks, [(0, 1), (2,)], SIZES, strict=True):
        for layer, gradient in enumerate(rank[f"frozen {mode}"]):
            assert (gradient is None) == (layer in frozen)
            if gradient is not None:
                own = expected[layer][first : first + size] * sum(SIZES) / size
                torch.testing.assert_close(gradient, own, rtol=1e-10, atol=1e-15)
        first += size


def test_sizes_are_exchanged_once_a_step(ranks: list[dict[Any, Any]]) -> None:
    for rank in ranks:
        (forward, forward_waits), (backward, backward_waits) = rank["collectives"]
        assert forward.count(torch.int64) == forward_waits == 1
        assert backward.count(torch.int64) == backward_waits == 0
        assert len(backward) == 1  # the teacher


def test_shapes_with_a_group_without_data(ranks: list[dict[Any, Any]]) -> None:
    for rank, size in zip(ranks, SIZES, strict=True):
        for shared in (False, True):
            assert rank["fake"][shared] == [[4], *[[4, size]] * 8, [size], *[[size, 2, 5, 6]] * 4]


def test_the_numbers_of_settings_do_not_depend_on_the_process() -> None:
    # Python's own hash of a string does.
    program = "from framer_kernels.distributed import _stable_hash as f; print([f(x) for x in ('complex', 0.5, None)])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout
        for seed in ("1", "2")
    }

    assert len(outputs) == 1
