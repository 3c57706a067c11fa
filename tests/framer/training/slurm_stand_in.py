"""``srun`` and ``scontrol`` for tests: programs on PATH that do on this machine what a step does on its nodes."""

from __future__ import annotations

import sys
from pathlib import Path

NODES = ("127.0.0.1", "localhost")

_SRUN = """#!{python}
import argparse, os, signal, subprocess, sys

parser = argparse.ArgumentParser()
parser.add_argument("-n", "--ntasks", type=int, default=int(os.environ.get("SLURM_NTASKS", "1")))
parser.add_argument("--kill-on-bad-exit", choices=["0"])
parser.add_argument("--wait", type=int)
parser.add_argument("command", nargs=argparse.REMAINDER)
arguments = parser.parse_args()
nodes = int(os.environ["SLURM_NNODES"])
a_node = arguments.ntasks // nodes
tasks = []

def forward(number, frame):
    for task in tasks:
        if task.poll() is None:
            task.send_signal(number)

signal.signal(signal.SIGUSR1, forward)
for rank in range(arguments.ntasks):
    step = dict(
        SLURM_STEP_ID="0",
        SLURM_NTASKS=str(arguments.ntasks),
        SLURM_PROCID=str(rank),
        SLURM_LOCALID=str(rank % a_node),
        SLURM_NODEID=str(rank // a_node),
    )
    tasks.append(subprocess.Popen(arguments.command, env=os.environ | step))
sys.exit(max(task.wait() if task.wait() >= 0 else 128 - task.wait() for task in tasks))
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
