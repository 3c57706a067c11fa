"""``framer plan``: memory, operations and communication of a run, without running it."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from framer.config.loading import load_config
from framer.config.training import TrainConfig
from framer.errors import UserError
from framer.files import write_text
from framer.planning.units import parse_memory

HELP = "Predict what a run takes in memory, operations and communication, and which settings fit; needs no GPU."
RESERVE = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--config", required=True, help="YAML file, for example configs/plan/sd35_medium.yaml")
    parser.add_argument("--gpus", type=int, required=True, help="number of GPUs, one rank each")
    parser.add_argument("--memory", required=True, help="memory of a GPU, for example 80GB or 79.2GiB")
    parser.add_argument(
        "--reserve",
        type=float,
        default=RESERVE,
        help="part of the memory left for the CUDA context, NCCL's buffers and fragmentation (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the plan as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw it, as PNG")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example deepspeed.zero_stage=2")


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan of a configuration.

    Returns:
        0, also where nothing fits: that is an answer.

    Raises:
        UserError: An argument is out of range, or the configuration is wrong.
    """
    if arguments.gpus < 1:
        raise UserError(f"--gpus {arguments.gpus}: expected 1 or more")
    if not 0 <= arguments.reserve < 1:
        raise UserError(f"--reserve {arguments.reserve}: expected a part of the memory, from 0 to below 1")
    memory = parse_memory(arguments.memory)
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    # These import torch and DeepSpeed, which takes seconds: after what can be refused without them.
    _silence_deepspeed()
    from framer.data.sources import text_folder, with_shard_settings, with_text_settings
    from framer.planning.planner import Planner, recommend
    from framer.planning.report import PlanReport, draw_plans, render_json, render_text
    from framer.planning.settings import shown_settings

    texts = text_folder(config.data)
    if texts is not None and texts.is_dir():
        config = with_text_settings(config)
    config = with_shard_settings(config)
    budget = int(memory * (1 - arguments.reserve))
    planner = Planner(config, world_size=arguments.gpus)
    report = PlanReport(
        source=" ".join([arguments.config, *arguments.overrides]),
        world_size=arguments.gpus,
        memory=memory,
        budget=budget,
        step=planner.unpartitioned(config),
        plans=[planner.as_configured(), *map(planner.plan, shown_settings(config))],
        recommendation=recommend(planner, budget),
    )
    sys.stdout.write(render_text(report))
    if arguments.json is not None:
        write_text(arguments.json, render_json(report))
    if arguments.plot is not None:
        draw_plans(report, arguments.plot)
    return 0


def _silence_deepspeed() -> None:
    """Keeps DeepSpeed's notes, such as that there is no GPU, out of the output, where it would write them."""
    # Its level is set when DeepSpeed is imported; a filter stays.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
