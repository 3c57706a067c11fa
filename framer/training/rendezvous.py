"""Which rank a process is, and meeting the others."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Final, NamedTuple

from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from framer.errors import UserError


class Place(NamedTuple):
    """A process among those that train together."""

    rank: int
    world_size: int
    local_rank: int
    """Its number on its node, which is also its GPU's."""
    master_addr: str
    """Where rank 0 listens."""
    master_port: int


_LAUNCHER: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SLURM: Final = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
# Set by srun in every step, and not in a batch script itself, whose SLURM_PROCID and SLURM_NTASKS say nothing of it.
_SLURM_STEP: Final = "SLURM_STEP_ID"
_MPI_SIZES: Final = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE")


def read_place(environment: Mapping[str, str]) -> Place:
    """Reads what the launcher says: DeepSpeed, torchrun or ``srun``; without any, a run of one process.

    Args:
        environment: The process's environment variables.

    Raises:
        UserError: Variables are missing, are not numbers or contradict each other; the message names them.
    """
    if any(name in environment for name in _LAUNCHER):
        names = _LAUNCHER
    elif _SLURM_STEP in environment and any(name in environment for name in _SLURM):
        names = _SLURM
    else:
        _refuse_mpi(environment)
        return Place(0, 1, 0, "127.0.0.1", _free_port())
    missing = [name for name in names if not environment.get(name)]
    if missing:
        given = ", ".join(f"{name}={environment[name]}" for name in names if environment.get(name))
        raise UserError(
            f"{', '.join(missing)} not set in the environment{f' beside {given}' if given else ''}; start with "
            f"deepspeed, torchrun or srun, which set all of {', '.join(names)}, or unset these for one process"
        )
    rank, world_size, local_rank = (_number(environment, name) for name in names)
    if not (0 <= rank < world_size and 0 <= local_rank < world_size):
        raise UserError(
            f"{names[0]}={rank}, {names[1]}={world_size} and {names[2]}={local_rank} in the environment contradict "
            "each other: ranks count from 0 to below the number of processes"
        )
    if world_size == 1 and not environment.get("MASTER_ADDR"):
        return Place(rank, world_size, local_rank, "127.0.0.1", _free_port())
    unset = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if unset:
        raise UserError(
            f"{' and '.join(unset)} not set in the environment for {names[0]}={rank} of {names[1]}={world_size}; set "
            "MASTER_ADDR to the first node's name and MASTER_PORT to a free port there, as configs/slurm/train.sbatch "
            "does"
        )
    port = _number(environment, "MASTER_PORT")
    return Place(rank, world_size, local_rank, environment["MASTER_ADDR"], port)


def meet(place: Place, *, seconds: int) -> Store:
    """Waits until every rank has arrived.

    Args:
        place: This process.
        seconds: How long to wait for the others.

    Returns:
        The store through which a process group can be made.

    Raises:
        UserError: A rank did not arrive, or rank 0 cannot be reached; the message says which and how many came.
    """
    where = f"{place.master_addr}:{place.master_port}"
    timeout = timedelta(seconds=seconds)
    # torchrun's agent listens itself, for its workers' restarts too.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        listener = TCPStore(
            place.master_addr,
            # Of one process nobody else asks for the port, which another run may have.
            place.master_port if place.world_size > 1 or agent else 0,
            place.world_size,
            is_master=place.rank == 0 and not agent,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )
    except DistError as error:
        if place.rank == 0:
            raise UserError(
                f"rank 0 cannot listen on {where} (MASTER_ADDR, MASTER_PORT): {_first_line(error)}; is another run "
                "on that port, or the address another machine's?"
            ) from None
        raise UserError(
            f"rank {place.rank} on {socket.gethostname()} did not reach rank 0 at {where} (MASTER_ADDR, MASTER_PORT) "
            f"within {seconds} seconds (distributed.rendezvous_seconds): {_first_line(error)}"
        ) from None
    store = PrefixStore(f"framer-{attempt}", listener)
    arrivals = [f"arrived-{rank}" for rank in range(place.world_size)]
    try:
        store.set(arrivals[place.rank], socket.gethostname())
        store.wait(arrivals, timeout)
    except DistError as error:
        raise UserError(_missing_ranks(store, arrivals, seconds, where, error)) from None
    return store


def _missing_ranks(store: Store, arrivals: list[str], seconds: int, where: str, error: Exception) -> str:
    try:
        missing = [rank for rank, key in enumerate(arrivals) if not store.check([key])]
    except DistError:
        return f"rank 0 at {where} went away while ranks were meeting; see its own message ({_first_line(error)})"
    shown = ", ".join(map(str, missing[:16])) + (", ..." if len(missing) > 16 else "")
    return (
        f"{len(arrivals) - len(missing)} of {len(arrivals)} ranks came to {where} within {seconds} seconds "
        f"(distributed.rendezvous_seconds); missing: rank {shown}. Look for their own messages, whether each node "
        "was started with the same number of ranks, and whether the nodes reach that address"
    )


def _refuse_mpi(environment: Mapping[str, str]) -> None:
    for name in _MPI_SIZES:
        if environment.get(name, "1") != "1":
            raise UserError(
                f"{name}={environment[name]}: started by mpirun, which does not set {', '.join(_LAUNCHER)}, so every "
                "process would train alone; start with deepspeed, torchrun or srun"
            )


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise UserError(f"{name}={environment[name]!r} in the environment is not an integer") from None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
