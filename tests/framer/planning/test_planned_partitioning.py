"""Which parameters are whole when, on modules small enough to say by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from framer.planning.partitioning import (
    DONE_BACKWARD,
    DONE_FORWARD,
    NEEDED_BACKWARD,
    NEEDED_FORWARD,
    Partitioned,
    PartitioningEvents,
    WholeParameters,
)


def whole(numel: tuple[int, ...], modules: tuple[tuple[int, ...], ...], **settings: Any) -> WholeParameters:
    """Modules that run forward in their order and backward against it, on two ranks, 4 bytes an element."""
    layout = {
        "world_size": 2,
        "offloaded": False,
        "itemsize": 4,
        "persistence_threshold": 0,
        "prefetch": 0,
        "max_live": 1000,
        "max_reuse_distance": 0,
    }
    order = [*range(len(modules)), *reversed(range(len(modules)))]
    return WholeParameters(Partitioned(numel=numel, modules=modules, **(layout | settings)), order)


def run(parameters: WholeParameters) -> list[int]:
    """Bytes while each module runs."""
    during = []
    for module in parameters.order:
        parameters.needed(module)
        during.append(parameters.bytes)
        parameters.done(module)
    return during


def test_only_the_running_modules_parameters_are_whole() -> None:
    parameters = whole((10, 20, 30), ((0,), (1,), (2,)))
    assert run(parameters) == [40, 80, 120, 120, 80, 40]
    assert parameters.bytes == 0
    assert parameters.gathered == 2 * 60


def test_parameters_that_are_needed_again_soon_stay() -> None:
    # The last one is used twice in a row; the distance to the second use of the others is larger.
    parameters = whole((10, 20, 30), ((0,), (1,), (2,)), max_reuse_distance=31)
    assert run(parameters) == [40, 80, 120, 120, 80, 40]
    assert parameters.gathered == 2 * 10 + 2 * 20 + 30


def test_several_parameters_are_copied_out_of_one_buffer() -> None:
    parameters = whole((11, 20), ((0, 1),))
    # 12 and 20 elements with padding in the buffer, and the copies.
    assert parameters.needed(0) == 4 * (12 + 20) + 4 * 31
    assert parameters.bytes == 4 * 31


def test_the_next_parameters_are_gathered_ahead() -> None:
    assert run(whole((10, 20, 30), ((0,), (1,), (2,)), prefetch=1))[:3] == [40 + 80, 80 + 120, 120 + 80]
    # Not beyond what may be live.
    assert run(whole((10, 20, 30), ((0,), (1,), (2,)), prefetch=1, max_live=10))[:3] == [40, 80, 120]


def test_small_parameters_are_not_partitioned_and_one_rank_has_all() -> None:
    assert run(whole((10, 20), ((0,), (1,)), persistence_threshold=10)) == [0, 80, 80, 0]
    assert run(whole((10, 20), ((0,), (1,)), world_size=1)) == [0, 0, 0, 0]
    # From the host they are copied.
    assert run(whole((10, 20), ((0,), (1,)), world_size=1, offloaded=True)) == [40, 80, 80, 40]


def test_modules_report_their_forward_and_backward_passes() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    events: list[tuple[str, int]] = []
    PartitioningEvents(lambda event, index: events.append((event, index))).watch(model)
    x = torch.randn(4, 2, requires_grad=True)
    model(x).sum().backward()
    assert events == [
        (NEEDED_FORWARD, 0),
        (NEEDED_FORWARD, 1),
        (DONE_FORWARD, 1),
        (NEEDED_FORWARD, 2),
        (DONE_FORWARD, 2),
        (DONE_FORWARD, 0),
        (NEEDED_BACKWARD, 0),
        (NEEDED_BACKWARD, 2),
        (DONE_BACKWARD, 2),
        (NEEDED_BACKWARD, 1),
        (DONE_BACKWARD, 1),
        (DONE_BACKWARD, 0),
    ]
