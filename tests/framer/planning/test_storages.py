"""Known operations make known storages."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from framer.planning.storages import PeakMemory

COUNT = 1000
BYTES = 4 * COUNT


def test_peak_memory_of_operations() -> None:
    with FakeTensorMode(), PeakMemory() as memory:
        a = torch.empty(COUNT)
        b = a + 1
        assert (memory.current, memory.peak) == (2 * BYTES, 2 * BYTES)
        del b
        assert (memory.current, memory.peak) == (BYTES, 2 * BYTES)
        b = a[: COUNT // 2]  # a view is no memory
        c = a.double()
        assert (memory.current, memory.peak) == (3 * BYTES, 3 * BYTES)
        assert memory.peak_operator == "aten._to_copy.default"
        del a, b, c
        assert (memory.current, memory.peak) == (0, 3 * BYTES)


def test_parameters_count_from_the_start() -> None:
    with FakeTensorMode():
        model = nn.Linear(10, 100, bias=False)
        with PeakMemory(model) as memory:
            assert memory.current == BYTES
            model(torch.empty(1, 10)).sum().backward()
        assert memory.current >= 2 * BYTES  # and the gradient


def test_peak_memory_of_a_backward_pass() -> None:
    with FakeTensorMode(), PeakMemory() as memory:
        x = torch.empty(COUNT, requires_grad=True)
        y = x.sin().sin().sum()
        before = memory.current
        assert before == 2 * BYTES + 4  # x, one sine, the sum: the second sine is not needed
        y.backward()

    assert memory.peak > before


def test_views_of_what_is_left_out_are_left_out() -> None:
    weight = torch.empty(10, 100, device="meta")
    with PeakMemory() as memory:
        memory.leave_out(weight)
        transposed = weight.t()
        assert (memory.current, memory.peak) == (0, 0)
        product = torch.empty(5, 100, device="meta") @ transposed
        assert (memory.current, memory.peak) == (product.nbytes, product.nbytes + 4 * 500)


def test_other_devices_do_not_count() -> None:
    with PeakMemory(device="meta") as memory:
        kept = torch.empty(COUNT, device="meta"), torch.empty(COUNT)
        assert memory.current == BYTES
        memory.restart()
        del kept
        assert (memory.current, memory.peak) == (0, BYTES)
