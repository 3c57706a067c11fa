"""One rank's death ends the others, with its reason, instead of leaving them to wait in a collective.

Every rank keeps a connection to rank 0 beside the process group's own, served by a thread: it says that the rank is
alive, that it failed and why, or that it is done. A connection that closes before that is a death, which the
operating system reports at once; one that falls silent is a rank that is stopped, or whose machine is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import AuthenticationError, Pipe
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any, Final, NamedTuple

import torch.distributed as dist

from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.training.preemption import PreemptedError
from framer.training.ranks import gather_objects, start_distributed
from framer.training.rendezvous import read_place

EXIT_LOST_RANK: Final = 1
# A rank that fails by itself in the same moment, as all do on a non-finite loss, shows its own error.
_OWN_ERROR_SECONDS: Final = 3.0
# An error in a collective is mostly the echo of another rank's death, which arrives by then.
_ECHO_SECONDS: Final = 6.0
_ACKNOWLEDGE_SECONDS: Final = 2.0


class Meeting(NamedTuple):
    """Where rank 0 listens."""

    host: str
    port: int
    key: bytes
    """Shared secret: whoever does not know it is turned away."""


class Watchdog:
    """Watches the other ranks from a thread of its own.

    Args:
        rank: This rank.
        world_size: Number of ranks, 2 or more.
        timeout: Seconds of silence after which a rank counts as lost.
    """

    def __init__(self, *, rank: int, world_size: int, timeout: float) -> None:
        self._rank, self._world_size, self._timeout = rank, world_size, timeout
        self._interval = min(5.0, timeout / 5)
        self._woken, self._waker = Pipe(duplex=False)
        self._peers: dict[int, Connection] = {}
        # When each rank was last heard, of those that are not done; rank 0 is done when all are.
        self._heard: dict[int, float] = {}
        # Ranks that have not confirmed this one's failure.
        self._unaware: set[int] = set()
        self._sending = threading.Lock()
        self._met = threading.Event()
        self._leaving = threading.Event()
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None
        # A data worker that outlives this process would keep its connections open, and its death a secret.
        os.register_at_fork(after_in_child=self._close)

    def listen(self, host: str) -> Meeting:
        """Opens rank 0's port; the others need what it returns for :meth:`join`."""
        key = secrets.token_bytes(32)
        listener = Listener(("", 0), backlog=self._world_size, authkey=key)
        self._start(lambda: self._accept_all(listener))
        return Meeting(host, listener.address[1], key)

    def join(self, meeting: Meeting) -> None:
        """Connects to rank 0.

        Raises:
            OSError: Rank 0's port cannot be reached.
        """
        self._add(0, Client((meeting.host, meeting.port), authkey=meeting.key))
        self._send(self._peers[0], kind="hello")
        self._start(self._watch)

    def wait_for_others(self) -> None:
        """Returns on rank 0 when all other ranks have joined."""
        self._met.wait()

    def report(self, error: BaseException) -> None:
        """Tells the other ranks why this one fails.

        An error in a collective may be the echo of another rank's death: then this process ends here, with that
        rank's message.
        """
        if self._thread is not None and isinstance(error, RuntimeError):
            self._thread.join(_ECHO_SECONDS)
        self._unaware = set(self._peers)
        self._leaving.set()
        for peer in list(self._peers.values()):
            self._send(peer, kind="failed", message=_summary(error))
        self._waker.send_bytes(b"")
        if self._thread is not None:
            # A process that ends with something unread resets its connections, and its last words are lost.
            self._thread.join(_ACKNOWLEDGE_SECONDS)

    def finish(self) -> None:
        """Waits for the other ranks to finish; one that fails until then ends this one too."""
        if self._rank != 0:
            self._send(self._peers[0], kind="done")
        self._finished.set()
        self._waker.send_bytes(b"")
        if self._thread is not None:
            self._thread.join()
        if self._rank == 0:
            for peer in self._peers.values():
                self._send(peer, kind="done")
        self._close()

    def _close(self) -> None:
        for connection in (self._waker, self._woken, *list(self._peers.values())):
            connection.close()

    def _start(self, work: Any) -> None:
        self._thread = threading.Thread(target=work, name="rank watchdog", daemon=True)
        self._thread.start()

    def _add(self, rank: int, peer: Connection) -> None:
        self._heard[rank], self._peers[rank] = time.monotonic(), peer

    def _accept_all(self, listener: Listener) -> None:
        with listener:
            while len(self._peers) < self._world_size - 1:
                with contextlib.suppress(OSError, EOFError, ValueError, AuthenticationError):  # a stranger at the port
                    peer = listener.accept()
                    self._add(int(json.loads(peer.recv_bytes())["rank"]), peer)
        self._met.set()
        self._watch()

    def _watch(self) -> None:
        spoken = 0.0
        while not (self._leaving.is_set() and not self._unaware) and not (self._finished.is_set() and not self._heard):
            if time.monotonic() - spoken >= self._interval:
                spoken = time.monotonic()
                for peer in self._peers.values():
                    self._send(peer, kind="alive")
            ranks = {peer: rank for rank, peer in self._peers.items() if rank in self._heard}
            # Whatever has arrived is read before anybody is called silent: this process may have been held up itself.
            for ready in wait([self._woken, *ranks], timeout=self._interval):
                assert isinstance(ready, Connection)
                if ready is self._woken:
                    ready.recv_bytes()
                else:
                    self._receive(ranks[ready], ready)
            for rank, heard in list(self._heard.items()):
                silent = time.monotonic() - heard
                if silent > self._timeout:
                    self._end(
                        f"rank {rank} has given no sign of life for {silent:.0f} s: it is stopped, or its machine or "
                        "network is lost (health.rank_timeout)"
                    )

    def _receive(self, rank: int, peer: Connection) -> None:
        try:
            message = json.loads(peer.recv_bytes())
        except (EOFError, OSError):
            del self._heard[rank]
            self._unaware.discard(rank)
            self._end(f"rank {rank} has died: its process ended without a message (killed, perhaps for memory)")
            return
        self._heard[rank] = time.monotonic()
        if message["kind"] == "done":
            del self._heard[rank]  # its connection stays: it may still need to hear of others
        elif message["kind"] == "lost":
            self._end(message["message"])
        elif message["kind"] == "acknowledged":
            self._unaware.discard(rank)
        elif message["kind"] == "failed":
            self._send(peer, kind="acknowledged")
            if self._rank == 0:
                for other in self._peers.values():
                    self._send(other, **message)
            if not self._leaving.wait(_OWN_ERROR_SECONDS):
                self._end(f"rank {message['rank']} failed: {message['message']}")

    def _end(self, what: str) -> None:
        if self._leaving.is_set():
            return  # this rank ends by an error of its own
        for peer in self._peers.values():
            self._send(peer, kind="lost", message=what)
        # In one write: the ranks share a terminal.
        sys.stderr.write(f"\nerror: {what}; rank {self._rank} ends too\n")
        sys.stderr.flush()
        sys.stdout.flush()
        # The main thread may wait in a collective that nothing can interrupt.
        os._exit(EXIT_LOST_RANK)

    def _send(self, peer: Connection, **message: object) -> None:
        with self._sending, contextlib.suppress(OSError):  # a peer that is gone is found out when it is read
            peer.send_bytes(json.dumps({"rank": self._rank, **message}).encode())


@contextmanager
def watch_ranks(config: TrainConfig) -> Iterator[None]:
    """Watches the ranks while the body runs, and tells the others what it raises; without effect for one rank.

    Joins the process group first, so that a rank whose photographs or model are missing does not leave the others
    waiting for it.

    Raises:
        UserError: The ranks do not come together, or one cannot reach rank 0's port.
    """
    if config.health.rank_timeout == 0 or read_place(os.environ).world_size == 1:
        yield
        return
    start_distributed(config.distributed)
    watchdog = _meet(config.health.rank_timeout)
    try:
        yield
    except PreemptedError:  # which all ranks leave with together
        watchdog.finish()
        raise
    except BaseException as error:
        watchdog.report(error)
        raise
    watchdog.finish()


def _meet(timeout: float) -> Watchdog:
    rank, failure = dist.get_rank(), ""
    watchdog = Watchdog(rank=rank, world_size=dist.get_world_size(), timeout=timeout)
    meeting: list[Any] = [watchdog.listen(os.environ["MASTER_ADDR"]) if rank == 0 else None]
    dist.broadcast_object_list(meeting, src=0)
    if rank != 0:
        try:
            watchdog.join(meeting[0])
        except OSError as error:
            failure = f"rank {rank} cannot reach {meeting[0].host}, port {meeting[0].port}: {error}"
    failed = [message for message in gather_objects(failure) if message]
    if failed:
        raise UserError(f"the ranks cannot watch each other: {failed[0]}; health.rank_timeout=0 goes without")
    if rank == 0:
        watchdog.wait_for_others()
    return watchdog


def _summary(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, UserError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = "".join(f"\n  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
    return f"{type(error).__name__}: {error}{where}"
