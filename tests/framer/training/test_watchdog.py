"""Ranks that die, fail, stop or finish, and what the others make of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection
from pathlib import Path

import pytest

from framer.errors import UserError
from framer.training import watchdog as watchdog_module
from framer.training.watchdog import Meeting, Watchdog

# Forked: a fresh interpreter would take seconds to import torch.
FORK = multiprocessing.get_context("fork")
TIMEOUT = 1.5
Body = Callable[[Watchdog], None]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_module, "_OWN_ERROR_SECONDS", 1.0)
    monkeypatch.setattr(watchdog_module, "_ECHO_SECONDS", 2.0)


def wait_for_ever(_: Watchdog) -> None:
    """What a rank does in a collective that a dead rank never enters."""
    while True:
        time.sleep(60)


def _rank(rank: int, world_size: int, body: Body, log: Path, meetings: list[Connection], answer: Connection) -> None:
    sys.stderr = log.open("w")
    watchdog = Watchdog(rank=rank, world_size=world_size, timeout=TIMEOUT)
    if rank == 0:
        meeting = watchdog.listen("127.0.0.1")
        for other in meetings:
            other.send(tuple(meeting))
        watchdog.wait_for_others()
    else:
        watchdog.join(Meeting(*answer.recv()))
    try:
        body(watchdog)
    except Exception as error:
        watchdog.report(error)
        os._exit(7)
    watchdog.finish()
    os._exit(0)


class Ranks:
    """Processes that watch each other, one for each body."""

    def __init__(self, folder: Path, *bodies: Body) -> None:
        pipes = [FORK.Pipe() for _ in bodies]
        self._logs = [folder / f"rank-{rank}" for rank in range(len(bodies))]
        self.processes = [
            FORK.Process(
                target=_rank,
                args=(rank, len(bodies), body, self._logs[rank], [near for near, _ in pipes[1:]], pipes[rank][1]),
            )
            for rank, body in enumerate(bodies)
        ]
        for process in self.processes:
            process.start()

    def exits(self) -> list[int | None]:
        for process in self.processes:
            process.join(30)
        return [process.exitcode for process in self.processes]

    def errors(self, rank: int) -> str:
        return self._logs[rank].read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    started: list[Ranks] = []

    def run(*bodies: Body) -> Ranks:
        started.append(Ranks(tmp_path, *bodies))
        return started[-1]

    yield run
    for ranks in started:
        for process in ranks.processes:
            process.kill()


def after(seconds: float, then: Callable[[], None]) -> Body:
    def body(_: Watchdog) -> None:
        time.sleep(seconds)
        then()

    return body


def fail(error: Exception) -> Callable[[], None]:
    def then() -> None:
        raise error

    return then


def nothing() -> None:
    pass


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_rank_ends_the_others_at_once_and_is_named(start: Callable[..., Ranks], victim: int) -> None:
    def killed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    bodies = [wait_for_ever] * 3
    bodies[victim] = after(0.5, killed)
    began = time.monotonic()
    ranks = start(*bodies)
    expected = [1, 1, 1]
    expected[victim] = -signal.SIGKILL
    assert ranks.exits() == expected
    assert time.monotonic() - began < 20
    for rank in {0, 1, 2} - {victim}:
        assert f"rank {victim} has died: its process ended without a message" in ranks.errors(rank)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_data_worker_that_outlives_its_rank_does_not_hide_its_death(start: Callable[..., Ranks], victim: int) -> None:
    def killed() -> None:
        if os.fork() == 0:
            time.sleep(25)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    bodies = [wait_for_ever] * 2
    bodies[victim] = after(0.2, killed)
    ranks = start(*bodies)
    survivor = ranks.processes[1 - victim]
    survivor.join(20)
    assert survivor.exitcode == 1
    assert f"rank {victim} has died" in ranks.errors(1 - victim)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_raises_tells_the_others_why(start: Callable[..., Ranks], victim: int) -> None:
    bodies = [wait_for_ever] * 3
    bodies[victim] = after(0.3, fail(UserError("data.train: no such folder: /photos")))
    ranks = start(*bodies)
    expected = [1, 1, 1]
    expected[victim] = 7
    assert ranks.exits() == expected
    for rank in {0, 1, 2} - {victim}:
        assert f"error: rank {victim} failed: data.train: no such folder: /photos" in ranks.errors(rank)
    assert ranks.errors(victim) == ""


def test_an_unexpected_error_comes_with_its_place(start: Callable[..., Ranks]) -> None:
    ranks = start(wait_for_ever, after(0.1, fail(ZeroDivisionError("division by zero"))))
    assert ranks.exits() == [1, 7]
    assert "rank 1 failed: ZeroDivisionError: division by zero\n" in ranks.errors(0)
    assert f"{__file__}:" in ranks.errors(0)


def test_ranks_that_all_fail_show_their_own_errors(start: Callable[..., Ranks]) -> None:
    ranks = start(*[after(0.2 * rank, fail(UserError(f"{rank}"))) for rank in range(3)])
    assert ranks.exits() == [7, 7, 7], [ranks.errors(rank) for rank in range(3)]
    assert [ranks.errors(rank) for rank in range(3)] == ["", "", ""]


@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_that_echoes_a_death_names_the_dead_rank(start: Callable[..., Ranks], victim: int) -> None:
    # As gloo's: the survivor's collective fails before its watchdog has read anything.
    bodies = [after(0.2, fail(RuntimeError("Connection closed by peer")))] * 3
    bodies[victim] = after(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL))
    ranks = start(*bodies)
    expected = [1, 1, 1]
    expected[victim] = -signal.SIGKILL
    assert ranks.exits() == expected
    for rank in {0, 1, 2} - {victim}:
        assert f"rank {victim} has died" in ranks.errors(rank)
        assert "Connection closed" not in ranks.errors(rank)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_is_reported_after_the_timeout(start: Callable[..., Ranks], victim: int) -> None:
    bodies = [wait_for_ever] * 3
    bodies[victim] = after(0.3, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    ranks = start(*bodies)
    for rank in {0, 1, 2} - {victim}:
        ranks.processes[rank].join(30)
        assert ranks.processes[rank].exitcode == 1
        assert f"rank {victim} has given no sign of life for" in ranks.errors(rank)
    assert ranks.processes[victim].is_alive()
    os.kill(ranks.processes[victim].pid or 0, signal.SIGCONT)
    ranks.processes[victim].join(30)
    assert ranks.processes[victim].exitcode == 1


@pytest.mark.parametrize("seconds", [[0.0, 0.3, TIMEOUT + 0.5], [TIMEOUT + 0.5, 0.0, 0.3]])
def test_ranks_that_finish_at_different_times_end_well(start: Callable[..., Ranks], seconds: list[float]) -> None:
    # The last one works on for longer than a silent rank is given.
    ranks = start(*[after(delay, nothing) for delay in seconds])
    assert ranks.exits() == [0, 0, 0]
    assert [ranks.errors(rank) for rank in range(3)] == ["", "", ""]


def test_a_rank_that_fails_when_others_are_done_is_still_heard(start: Callable[..., Ranks]) -> None:
    victim = 2
    bodies = [after(0.0, nothing)] * 3
    bodies[victim] = after(0.5, fail(UserError("no space left")))
    ranks = start(*bodies)
    expected = [1, 1, 1]
    expected[victim] = 7
    assert ranks.exits() == expected
    for rank in {0, 1, 2} - {victim}:
        assert f"rank {victim} failed: no space left" in ranks.errors(rank)


def test_a_stranger_at_the_port_does_no_harm() -> None:
    watchdog = Watchdog(rank=0, world_size=2, timeout=TIMEOUT)
    meeting = watchdog.listen("127.0.0.1")
    with pytest.raises(multiprocessing.AuthenticationError):
        Client((meeting.host, meeting.port), authkey=b"guess")
    other = Watchdog(rank=1, world_size=2, timeout=TIMEOUT)
    other.join(meeting)
    watchdog.wait_for_others()
    finishing = threading.Thread(target=watchdog.finish)
    finishing.start()
    other.finish()
    finishing.join()
