"""The command ``framer``: one subcommand a task, each declared where its task lives."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final, Protocol, cast

from framer.errors import UserError

EXIT_USER_ERROR: Final = 2
EXIT_INTERRUPTED: Final = 130


class Command(Protocol):
    """What the module of a subcommand has."""

    HELP: str
    """One line for the list of commands."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declares the command's arguments."""

    @staticmethod
    def run(arguments: argparse.Namespace) -> int:
        """Does the task; the exit status."""


# Imported when asked for: most of them import torch, which takes seconds.
COMMANDS: Final[dict[str, str]] = {
    "ablate": "framer.ablation.command",
    "analyze": "framer.analysis.paper.command",
    "evaluate": "framer.evaluation.command",
    "export": "framer.training.export_checkpoint",
    "plan": "framer.planning.command",
    "prepare": "framer.data.shards.command",
    "train": "framer.training.command",
    "upscale": "framer.inference.command",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        arguments: Command line; ``sys.argv[1:]`` by default.

    Returns:
        Exit status: the command's own; see :func:`run_command`.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="framer", description="Frequency-aligned self-distillation of diffusion models."
    )
    parser.add_argument("command", choices=sorted(COMMANDS), help="what to do; 'framer COMMAND --help' explains it")
    if not given or given[0] not in COMMANDS:
        parser.parse_args(given[:1])
        return EXIT_USER_ERROR
    name, *rest = given
    return run_command(cast(Command, importlib.import_module(COMMANDS[name])), rest, prog=f"framer {name}")


def run_command(command: Command, arguments: Sequence[str] | None, *, prog: str | None = None) -> int:
    """Runs a command and turns what users can do wrong into one message.

    Args:
        command: The command's module.
        arguments: Its command line; ``sys.argv[1:]`` by default.
        prog: Its name in messages.

    Returns:
        The command's own exit status; 2 for a mistake of the user's or a full disk, whose message went to standard
        error; 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog=prog, description=command.HELP)
    command.add_arguments(parser)
    # Intermixed: key=value may stand before, between and after options.
    parsed = parser.parse_intermixed_args(arguments)
    try:
        return command.run(parsed)
    except (UserError, OSError) as error:  # a full disk shows wherever a file is written
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
