"""Runs of a tiny model for the trainer's tests, each in processes of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[3]

TINY: dict[str, Any] = {
    "seed": 3,
    "framer": {"weight": 0.1},
    "data": {"crop_size": 32, "workers": 0},
    "model": {"architecture": {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 8}},
    "optimizer": {"lr": 1e-3},
    "training": {"max_steps": 4, "batch_size": 4, "checkpoint_steps": 2},
    "trackers": {"tensorboard": False},
    # Everything in stage 3 is partitioned: by default a tiny model would stay whole on every rank.
    "deepspeed": {"stage3_param_persistence_threshold": 0},
    "evaluation": {"crop_size": 64, "num_inference_steps": 1},
}

TRAIN_ALL = """
import sys
from framer.training.command import main
for config in sys.argv[1:]:
    status = main(["--config", config])
    if status:
        sys.exit(status)
"""


def tiny_config(folder: Path, **sections: Any) -> Path:
    """Writes a configuration: ``TINY`` with some sections' keys replaced; its run goes to ``folder/run``."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
    for name, value in sections.items():
        config[name] = {**config.get(name, {}), **value} if isinstance(value, dict) else value
    config["output_dir"] = str(folder / "run")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def environment(**variables: str) -> dict[str, str]:
    """That of a process of its own: a process group of the present one leaves variables behind."""
    of_a_launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    own = {k: v for k, v in os.environ.items() if k not in of_a_launcher and not k.startswith("SLURM_")}
    return {**own, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}


def free_port() -> str:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start_training(*arguments: str, start_new_session: bool = False) -> subprocess.Popen[str]:
    """Starts ``train.py`` as a single process, in a process group of its own if asked for."""
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
    )


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``train.py`` as a single process to its end."""
    process = start_training(*arguments)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_on_ranks(world_size: int, program: str, configs: list[Path]) -> list[subprocess.Popen[str]]:
    """Starts a Python program with the configurations as arguments on ``world_size`` ranks."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, configs)],
            cwd=REPOSITORY,
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(world_size),
                LOCAL_SIZE=str(world_size),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def run_on_ranks(world_size: int, program: str, configs: list[Path], *, timeout: float) -> list[tuple[int, str]]:
    """Runs a Python program with the configurations as arguments on ``world_size`` ranks.

    Returns:
        Exit status and standard error of each rank.
    """
    processes = start_on_ranks(world_size, program, configs)
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, errors, strict=True)]


def train_on_ranks(world_size: int, configs: list[Path]) -> None:
    """Trains one configuration after the other on the same ``world_size`` processes."""
    for status, errors in run_on_ranks(world_size, TRAIN_ALL, configs, timeout=500):
        assert status == 0, errors[-4000:]


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """The run's metrics without their timings and memory."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in ("time", "memory")} for line in lines]
