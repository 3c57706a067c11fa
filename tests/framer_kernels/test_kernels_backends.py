"""The choice of a backend: a Triton that is missing or broken is named once, and the loss is computed all the same."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kernel_cases import NEGATIVES, small_features
from torch import Tensor

from framer_kernels import backends, band_energy, band_similarity, framer_loss, inter_contrastive_loss

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton.runtime") is None, reason="needs Triton")


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    """Every test starts and ends without what others found out."""
    caches = (backends._import_problem, backends._launch_problem, backends._warn_once)
    for found in caches:
        found.cache_clear()
    yield
    for found in caches:
        found.cache_clear()


@pytest.fixture
def as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU passes for a device of Triton's."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "_is_gpu", lambda device: True)


def features(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    *students, teacher = [x.to(dtype) for x in small_features()]
    return [x.requires_grad_() for x in students], teacher


def step(dtype: torch.dtype = torch.float32, **options: Any) -> list[Tensor]:
    students, teacher = features(dtype)
    loss = framer_loss(students, teacher, negatives=NEGATIVES, **options).loss
    return [loss.detach(), *torch.autograd.grad(loss.sum(), students)]


def break_probe(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Has the first launch fail as it does without a C compiler; returns the devices that it was tried on."""
    from framer_kernels.backends.triton import probe

    tried: list[torch.device] = []

    def fail(device: torch.device) -> None:
        tried.append(device)
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr(probe, "run", fail)
    return tried


@needs_triton
@pytest.mark.usefixtures("as_gpu")
def test_kernels_that_do_not_run_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = break_probe(monkeypatch)
    expected = step(backend="portable")

    with pytest.warns(RuntimeWarning, match=r"do not run \(RuntimeError: Failed to find C compiler.\)$") as seen:
        found = step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = step()

    assert len(seen) == 1
    assert tried == [torch.device("cpu")]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(expected, found, again, strict=True))


@needs_triton
@pytest.mark.usefixtures("as_gpu")
def test_triton_asked_for_by_name_is_refused_where_its_kernels_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    break_probe(monkeypatch)
    (x, y, *_), teacher = features()

    for call in (
        lambda: step(backend="triton"),
        lambda: inter_contrastive_loss(x, teacher, y, backend="triton"),
        lambda: band_similarity(x, y, backend="triton"),
        lambda: band_energy(x, backend="triton"),
    ):
        with pytest.raises(ValueError, match=r"backend='triton': .* do not run \(RuntimeError: Failed to find C comp"):
            call()


@needs_triton
@pytest.mark.usefixtures("as_gpu")
def test_a_driver_that_is_not_there_is_found_by_the_probe() -> None:
    # Nothing is patched but the device: Triton compiles for a GPU that this machine does not have.
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")

    with pytest.warns(RuntimeWarning, match="kernels do not run"):
        found = step()

    assert all(torch.equal(a, b) for a, b in zip(found, step(backend="portable"), strict=True))


@needs_triton
def test_a_wrong_result_of_the_probe_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from framer_kernels.backends.triton import probe

    monkeypatch.setattr(probe, "framer_probe_kernel", {(1,): lambda *arguments, **options: None})

    problem = backends.triton_problem(torch.device("cpu"))

    assert problem is not None
    assert "a product of matrices is [0.0, 0.0, 0.0, 0.0], not [312, 314, 232, 262]" in problem


@needs_triton
@pytest.mark.usefixtures("as_gpu")
def test_what_the_kernels_do_not_know_needs_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = break_probe(monkeypatch)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(torch.float64)
    with pytest.raises(ValueError, match=r"take float32, bfloat16 and float16 features, not torch.float64"):
        step(torch.float64, backend="triton")

    assert tried == []


@pytest.mark.usefixtures("as_gpu")
def test_a_triton_that_cannot_be_imported_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "framer_kernels.backends.triton", None)  # what import turns into an error

    with pytest.warns(RuntimeWarning, match=r"Triton cannot be imported \(ModuleNotFoundError"):
        found = step()
    with pytest.raises(ValueError, match=r"backend='triton': Triton cannot be imported"):
        step(backend="triton")

    assert all(torch.equal(a, b) for a, b in zip(found, step(backend="portable"), strict=True))


@pytest.mark.parametrize("backend", ["auto", "portable"])
def test_compiles_whichever_backend_is_asked_for(backend: Any) -> None:
    students, teacher = features()

    def total(maps: list[Tensor]) -> Tensor:
        loss = framer_loss(maps, teacher, negatives=NEGATIVES, backend=backend).loss.sum()
        return loss + inter_contrastive_loss(maps[0], teacher, maps[1], backend=backend).sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")

    torch.testing.assert_close(compiled(students), total(students), rtol=1e-6, atol=0)


@needs_triton
@pytest.mark.usefixtures("as_gpu")
def test_the_choice_is_made_when_compiled_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = break_probe(monkeypatch)
    students, teacher = features()

    def loss(maps: list[Tensor], backend: Any) -> Tensor:
        return framer_loss(maps, teacher, negatives=NEGATIVES, backend=backend).loss

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with pytest.warns(RuntimeWarning, match="kernels do not run"):
        found = compiled(students, "auto")
    with pytest.raises(ValueError, match="backend='triton': Triton's kernels do not run"):
        compiled(students, "triton")

    assert tried == [torch.device("cpu")]
    torch.testing.assert_close(found, loss(students, "portable"), rtol=1e-6, atol=0)
