"""The command line of ``train.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as a configuration file says.

    Args:
        arguments: Command line; ``sys.argv[1:]`` by default.

    Returns:
        Exit status: 0 for success; 2 for a mistake of the user's or a full disk, whose message went to standard error;
        130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(description="Train a diffusion model with FRAMER.")
    parser.add_argument("--config", required=True, help="YAML file, for example configs/quickstart.yaml")
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)  # DeepSpeed's launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optimizer.lr=1e-4")
    parsed = parser.parse_args(arguments)
    try:
        config = load_config(TrainConfig, parsed.config, parsed.overrides)
        from framer.training.trainer import train

        report = train(config)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:  # a full disk shows wherever a file is written
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command continues from the last checkpoint\n")
        return 130
    sys.stdout.write(f"report: {report}\n")
    return 0
