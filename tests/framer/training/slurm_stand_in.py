"""``srun`` and ``scontrol`` for tests: they do on this machine what a job does on its nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from training_runs import REPOSITORY, environment

SCRIPT = REPOSITORY / "configs" / "slurm" / "train.sbatch"
NODES = ("127.0.0.1", "localhost")

_SRUN = """#!{python}
import argparse, os, signal, subprocess, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("-n", "--ntasks", type=int, default=int(os.environ.get("SLURM_NTASKS", "1")))
parser.add_argument("--kill-on-bad-exit", choices=["0"])
parser.add_argument("--wait", type=int)
parser.add_argument("command", nargs=argparse.REMAINDER)
arguments = parser.parse_args()
nodes = int(os.environ["SLURM_NNODES"])
a_node = arguments.ntasks // nodes
tasks, signals = [], []
signal.signal(signal.SIGUSR1, lambda number, frame: signals.append(number))
for rank in range(arguments.ntasks):
    step = dict(
        SLURM_STEP_ID="0",
        SLURM_NTASKS=str(arguments.ntasks),
        SLURM_PROCID=str(rank),
        SLURM_LOCALID=str(rank % a_node),
        SLURM_NODEID=str(rank // a_node),
    )
    tasks.append(subprocess.Popen(arguments.command, env=os.environ | step))
while any(task.poll() is None for task in tasks):
    while signals:
        number = signals.pop(0)
        for task in tasks:
            task.send_signal(number)
    time.sleep(0.02)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""

_SCONTROL = """#!/bin/bash
case "$1 $2" in
  "show hostnames") for node in ${{3//,/ }}; do echo "$node"; done ;;
  requeue*) echo "$@" >> "{requeued}" ;;
  *) exit 1 ;;
esac
"""


def install(folder: Path) -> Path:
    """Writes the two programs.

    Args:
        folder: Where; to be put on PATH.

    Returns:
        The file that ``scontrol requeue`` appends its arguments to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    requeued = folder / "requeued"
    for name, program in {"srun": _SRUN, "scontrol": _SCONTROL}.items():
        path = folder / name
        path.write_text(program.format(python=sys.executable, requeued=requeued))
        path.chmod(0o755)
    return requeued


def start_job(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Starts the batch script as a job of two nodes with one task each; ``folder`` holds Slurm's stand-ins."""
    job = {
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": ",".join(NODES),
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "0",
        "SLURM_CPUS_PER_TASK": "1",
    }
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        cwd=REPOSITORY,
        env=environment(**job, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
