"""Known graphs keep known bytes."""

from __future__ import annotations

import torch

from benchmarks.memory import peak_allocated, saved_bytes

COUNT = 1000
BYTES = 4 * COUNT


def test_saved_bytes_count_what_the_backward_pass_needs() -> None:
    x = torch.randn(COUNT, requires_grad=True)

    assert saved_bytes(lambda: x + 1) == 0
    assert saved_bytes(lambda: x.exp()) == BYTES  # its result
    assert saved_bytes(lambda: x.sin()) == BYTES  # x itself
    assert saved_bytes(lambda: x.sin().sin()) == 2 * BYTES


def test_a_storage_counts_once_and_whole() -> None:
    x = torch.randn(COUNT, requires_grad=True)

    assert saved_bytes(lambda: x * x) == BYTES
    assert saved_bytes(lambda: x.view(10, 100).sin() + x.view(20, 50).T.reshape(10, 100).cos()) == 2 * BYTES
    assert saved_bytes(lambda: x[:3].sin()) == BYTES


def test_what_is_alive_anyway_does_not_count() -> None:
    x, weight = torch.randn(COUNT, requires_grad=True), torch.randn(COUNT, requires_grad=True)

    assert saved_bytes(lambda: (x * weight).sin(), without=[x, weight]) == BYTES
    assert saved_bytes(lambda: x.view(10, 100).sin(), without=[x]) == 0


def test_peak_allocated_sees_the_insides_of_operators() -> None:
    @torch.library.custom_op("framer_benchmarks_test::with_workspace", mutates_args=())
    def with_workspace(x: torch.Tensor) -> torch.Tensor:
        workspace = torch.zeros(10 * x.numel())
        return x + workspace[0]

    x = torch.randn(COUNT)

    peak = peak_allocated(lambda: with_workspace(x))

    assert 11 * BYTES <= peak <= 11.2 * BYTES
