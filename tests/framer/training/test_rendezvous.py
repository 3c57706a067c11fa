"""Which rank a process is, and what it says when others do not come."""

from __future__ import annotations

import re
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from training_runs import free_port

from framer.errors import UserError
from framer.training.rendezvous import Place, meet, read_place

LAUNCHER = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node-a", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize("environment", [LAUNCHER, SRUN])
def test_the_place_that_a_launcher_says(environment: dict[str, str]) -> None:
    assert read_place(environment) == Place(3, 4, 1, "node-a", 29500)


def test_a_launcher_inside_of_an_srun_step_has_the_word() -> None:
    nodes = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    assert read_place(nodes | LAUNCHER) == Place(3, 4, 1, "node-a", 29500)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # A batch script itself: its variables speak of the steps that it may start.
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    ],
)
def test_one_process_needs_nothing(environment: dict[str, str]) -> None:
    place = read_place(environment)
    assert place[:4] == (0, 1, 0, "127.0.0.1")
    assert 0 < place.master_port < 65536


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "1"}, "WORLD_SIZE, LOCAL_RANK not set in the environment beside RANK=1; start with deepspeed"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK not set in the environment beside WORLD_SIZE=2, LOCAL_RANK=0"),
        ({"RANK": ""}, "RANK, WORLD_SIZE, LOCAL_RANK not set in the environment; start with deepspeed"),
        (LAUNCHER | {"RANK": "4"}, "RANK=4, WORLD_SIZE=4 and LOCAL_RANK=1 in the environment contradict each other"),
        (LAUNCHER | {"LOCAL_RANK": "-1"}, "RANK=3, WORLD_SIZE=4 and LOCAL_RANK=-1 .* contradict"),
        (LAUNCHER | {"LOCAL_RANK": "4"}, "LOCAL_RANK=4 .* contradict"),
        (LAUNCHER | {"WORLD_SIZE": "four"}, "WORLD_SIZE='four' in the environment is not an integer"),
        (LAUNCHER | {"MASTER_PORT": "high"}, "MASTER_PORT='high' in the environment is not an integer"),
        (LAUNCHER | {"MASTER_ADDR": ""}, "MASTER_ADDR not set in the environment for RANK=3 of WORLD_SIZE=4; set"),
        (
            {key: value for key, value in SRUN.items() if not key.startswith("MASTER")},
            "MASTER_ADDR and MASTER_PORT not set .* for SLURM_PROCID=3 of SLURM_NTASKS=4; set .*train.sbatch",
        ),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}, "SLURM_NTASKS, SLURM_LOCALID not set .* beside SLURM_PROCID=0"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_SIZE=2: started by mpirun"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2: started by mpirun, .* would train alone"),
    ],
)
def test_variables_that_cannot_be_are_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_place(environment)


def _places(world_size: int) -> list[Place]:
    port = int(free_port())
    return [Place(rank, world_size, rank, "127.0.0.1", port) for rank in range(world_size)]


def test_ranks_meet() -> None:
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda place: meet(place, seconds=60), _places(3)))
    stores[0].set("greeting", "hello")
    assert stores[2].get("greeting") == b"hello"


def test_all_who_came_name_who_did_not() -> None:
    places = _places(5)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(meet, places[rank], seconds=3) for rank in (0, 1, 3)]
        messages = [str(each.exception()) for each in waiting]
    expected = (
        f"3 of 5 ranks came to 127.0.0.1:{places[0].master_port} within 3 seconds (distributed.rendezvous_seconds); "
        "missing: rank 2, 4. "
    )
    # Rank 0 is first to give up, and may have gone before another one asks who is missing.
    assert messages[0].startswith(expected)
    assert all(message.startswith(expected) or "went away" in message for message in messages)


def test_many_missing_ranks_are_not_all_listed() -> None:
    with pytest.raises(UserError, match=r"1 of 40 ranks .* missing: rank 1, 2, .*, 16, \.\.\.\. Look"):
        meet(_places(40)[0], seconds=1)


def test_a_rank_that_finds_nobody_says_where_it_looked() -> None:
    place = _places(2)[1]
    message = f"rank 1 on {socket.gethostname()} did not reach rank 0 at 127.0.0.1:{place.master_port}"
    with pytest.raises(UserError, match=f"{re.escape(message)} .* within 1 seconds"):
        meet(place, seconds=1)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = Place(0, 2, 0, "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(UserError, match=r"rank 0 cannot listen on 127.0.0.1:\d+ .*is another run on that port"):
            meet(place, seconds=1)


def test_one_process_does_not_mind_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        meet(Place(0, 1, 0, "127.0.0.1", taken.getsockname()[1]), seconds=1)
