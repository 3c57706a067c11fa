"""The command line of ``train.py`` and ``framer train``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from framer import cli
from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.errors import UserError

HELP = "Train a diffusion model with FRAMER."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--config", required=True, help="YAML file, for example configs/quickstart.yaml")
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)  # DeepSpeed's launcher passes it
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, take two steps in a temporary folder, and say what a run costs",
    )
    parser.add_argument("--verbose", action="store_true", help="with --dry-run: show DeepSpeed's configuration too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optimizer.lr=1e-4")


def run(arguments: argparse.Namespace) -> int:
    """Trains, or tries whether it could, as the configuration file says.

    Returns:
        Exit status: 75 where a scheduler stopped the run.

    Raises:
        UserError: Arguments do not go together, or the run cannot be started or go on.
    """
    if arguments.verbose and not arguments.dry_run:
        raise UserError("--verbose says more about a dry run; give --dry-run too")
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    if arguments.dry_run:
        from framer.data.workers import dead_workers_named
        from framer.training.dry_run import dry_run
        from framer.training.watchdog import watch_ranks

        with watch_ranks(config), dead_workers_named():
            summary = dry_run(config, verbose=arguments.verbose)
        sys.stdout.write(summary)
        return 0
    import torch.distributed as dist

    from framer.training.preemption import EXIT_PREEMPTED, PreemptedError
    from framer.training.trainer import train

    try:
        report = train(config)
    except PreemptedError as stopped:
        if dist.get_rank() == 0:
            sys.stderr.write(f"{stopped}\n")
        return EXIT_PREEMPTED
    if dist.get_rank() == 0:
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
