"""The launchers that start ranks: each gives the run that ranks started by hand give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from slurm_stand_in import install, start_job
from training_runs import REPOSITORY, environment, free_port, read_steps, tiny_config, train_on_ranks

pytestmark = pytest.mark.slow

TWO_RANKS: dict[str, Any] = {
    "training": {"batch_size": 2, "max_steps": 2},
    "deepspeed": {"zero_stage": 2},
}

# Runs on this machine what pdsh would run on each host of its -w.
_PDSH = """#!{python}
import os, subprocess, sys

arguments = sys.argv[1:]
hosts = arguments[arguments.index("-w") + 1].split(",")
command = " ".join(arguments[arguments.index("-w") + 2 :])
bare = {{"PATH": os.defpath, "HOME": os.environ["HOME"]}}
jobs = [subprocess.Popen(["sh", "-c", command.replace("%n", str(i))], env=bare, cwd="/") for i in range(len(hosts))]
sys.exit(max(job.wait() for job in jobs))
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("by-hand")
    train_on_ranks(2, [tiny_config(folder, **TWO_RANKS)])
    return read_steps(folder)


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hostfile"
    path.write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    return path


def _start(*command: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        cwd=REPOSITORY,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(*processes: subprocess.Popen[str]) -> list[str]:
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
    return outputs


def test_two_deepspeed_launchers_without_ssh(tmp_path: Path, hostfile: Path, expected: list[dict[str, Any]]) -> None:
    config, port = tiny_config(tmp_path, **TWO_RANKS), free_port()
    launch = ["deepspeed", "--hostfile", str(hostfile), "--no_ssh", "--master_addr", "127.0.0.1"]
    nodes = [
        _start(*launch, "--master_port", port, "--node_rank", rank, "train.py", "--config", str(config))
        for rank in ("0", "1")
    ]
    _finish(*nodes)
    assert read_steps(tmp_path) == expected


def test_deepspeed_over_pdsh(tmp_path: Path, hostfile: Path, expected: list[dict[str, Any]]) -> None:
    """What a host gets: DeepSpeed's command, the environment that it passes on and ``.deepspeed_env``, no more."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, program in {"pdsh": _PDSH, "ssh": "#!/bin/sh\nexit 0\n"}.items():
        (programs / name).write_text(program.format(python=sys.executable))
        (programs / name).chmod(0o755)
    (tmp_path / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\nCUDA_VISIBLE_DEVICES=\n")
    config = tiny_config(tmp_path / "two words", **TWO_RANKS)
    launch = ["deepspeed", "--hostfile", str(hostfile), "--master_addr", "127.0.0.1", "--master_port", free_port()]
    path = f"{programs}:{os.environ['PATH']}"
    _finish(_start(*launch, "train.py", "--config", str(config), "seed=3", PATH=path, HOME=str(tmp_path)))
    assert read_steps(tmp_path / "two words") == expected


def test_torchrun(tmp_path: Path, expected: list[dict[str, Any]]) -> None:
    config = tiny_config(tmp_path, **TWO_RANKS)
    launch = ["torchrun", "--nproc_per_node", "2", "--master_port", free_port()]
    _finish(_start(*launch, "train.py", "--config", str(config)))
    assert read_steps(tmp_path) == expected


def test_the_batch_script_for_slurm(tmp_path: Path, expected: list[dict[str, Any]]) -> None:
    install(tmp_path / "bin")
    config = tiny_config(tmp_path, **TWO_RANKS)
    _finish(start_job(tmp_path / "bin", "--config", str(config), MASTER_PORT=free_port()))
    assert read_steps(tmp_path) == expected


def test_a_dry_run_of_two_ranks_says_once_what_it_costs(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, **TWO_RANKS)
    launch = ["deepspeed", "--num_gpus", "2", "--master_port", free_port()]
    (output,) = _finish(_start(*launch, "train.py", "--config", str(config), "--dry-run", "--verbose"))
    assert output.count("the run would start:") == 1
    assert "2 a rank x 1 accumulated x 2 rank(s)" in output
    assert output.count('"train_micro_batch_size_per_gpu": 2') == 2  # as given, and as resolved
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
