"""The command line of ``train.py`` and ``framer train``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from framer import cli
from framer.config.loading import load_config
from framer.config.training import TrainConfig

HELP = "Train a diffusion model with FRAMER."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--config", required=True, help="YAML file, for example configs/quickstart.yaml")
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)  # DeepSpeed's launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optimizer.lr=1e-4")


def run(arguments: argparse.Namespace) -> int:
    """Trains as the configuration file says; the exit status: 75 where a scheduler stopped the run."""
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    from framer.training.preemption import EXIT_PREEMPTED, PreemptedError
    from framer.training.trainer import train

    try:
        report = train(config)
    except PreemptedError as stopped:
        sys.stderr.write(f"{stopped}\n")
        return EXIT_PREEMPTED
    sys.stdout.write(f"report: {report}\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as a configuration file says.

    Args:
        arguments: Command line; ``sys.argv[1:]`` by default.

    Returns:
        Exit status, see :func:`framer.cli.run_command`.
    """
    return cli.run_command(sys.modules[__name__], arguments)  # type: ignore[arg-type]
