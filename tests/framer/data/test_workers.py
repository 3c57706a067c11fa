"""Errors in the processes that make samples."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from framer.data.images import ImageError
from framer.data.workers import leave_signals_to_parent, loaded
from framer.errors import UserError


class _Failing(Dataset[int]):
    """Makes the numbers up to 3, then fails."""

    def __init__(self, failure: BaseException | signal.Signals) -> None:
        self._failure = failure

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> int:
        if index < 4:
            return index
        if isinstance(self._failure, signal.Signals):
            os.kill(os.getpid(), self._failure)
        else:
            raise self._failure
        return index


def _taken(failure: BaseException | signal.Signals, workers: int) -> tuple[list[int], BaseException | None]:
    loader = DataLoader(_Failing(failure), batch_size=None, num_workers=workers, worker_init_fn=leave_signals_to_parent)
    taken: list[int] = []
    try:
        taken.extend(int(item) for item in loaded(loader))
    except Exception as error:
        return taken, error
    return taken, None


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [UserError, ImageError])
def test_an_error_of_the_users_keeps_its_message(kind: type[UserError], workers: int) -> None:
    message = "photo: 1.png: cannot be read: is: damaged"
    _, error = _taken(kind(message), workers)
    assert isinstance(error, UserError)
    assert str(error) == message


def test_a_worker_that_was_killed() -> None:
    _, error = _taken(signal.SIGKILL, 1)
    assert isinstance(error, UserError)
    assert "a data worker has died: DataLoader worker (pid" in str(error)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_the_program_keeps_its_type(workers: int) -> None:
    _, error = _taken(RuntimeError("shapes do not fit"), workers)
    assert type(error) is RuntimeError


def test_ctrl_c_does_not_end_a_worker(tmp_path: Path) -> None:
    taken, error = _taken(signal.SIGINT, 1)
    assert error is None
    assert taken == list(range(9))


@pytest.mark.parametrize("failure", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_while_it_hands_a_batch_over_is_told(failure: Exception) -> None:
    class Broken(DataLoader[int]):
        def __iter__(self) -> Iterator[int]:  # type: ignore[override]
            yield 0
            raise failure

    batches = loaded(Broken(_Failing(failure)))
    assert next(batches) == 0
    with pytest.raises(UserError, match=r"a data worker has died: .*data\.workers=0 shows"):
        next(batches)
