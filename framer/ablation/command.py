"""The command ``framer ablate``: trains the variants of a table, and tabulates them."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from framer.arguments import given_path

HELP = "Train the variants of an ablation table, resuming what was begun, and tabulate their quality and cost."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("table", type=given_path, help="YAML file, for example configs/ablations/table5.yaml")
    parser.add_argument("-o", "--output", type=given_path, metavar="DIR", help="folder of the runs")
    parser.add_argument("--config", type=given_path, help="base configuration in the place of the table's")
    parser.add_argument("--only", metavar="NAMES", help="variants to train, for example none,framer; all by default")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="S", help="a run of each variant with each"
    )
    parser.add_argument("--launcher", choices=["python", "deepspeed"], default="python", help="what starts a run")
    parser.add_argument("--launcher-args", default="", help="arguments of the launcher, for example '--num_gpus 8'")
    parser.add_argument("--list", action="store_true", help="show the variants, and what they change, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every run")


def run(arguments: argparse.Namespace) -> int:
    """Trains and tabulates.

    Returns:
        Exit status: 1 where a run failed, 75 where a scheduler stopped one.

    Raises:
        UserError: Arguments do not go together, or a run cannot be planned or started.
    """
    from framer.ablation.checks import check_runs
    from framer.ablation.plan import plan_runs, read_table, with_earlier_runs
    from framer.ablation.results import collect, write_results
    from framer.ablation.runs import LOG, check_same_settings, folder_of, is_finished, train
    from framer.errors import UserError
    from framer.training.preemption import EXIT_PREEMPTED

    table = read_table(arguments.table)
    if arguments.list:
        for name, variant in table.variants.items():
            sys.stdout.write(f"{name}: {variant.title}\n  {' '.join(variant.overrides) or 'the base as it is'}\n")
        return 0
    if arguments.output is None:
        raise UserError("give --output, the folder of the runs, or --list to see the variants")
    if arguments.launcher_args and arguments.launcher != "deepspeed":
        raise UserError("--launcher-args goes to DeepSpeed's launcher; give --launcher deepspeed too")
    only = [name.strip() for name in (arguments.only or "").split(",") if name.strip()]
    if arguments.only is not None and not only:
        raise UserError("--only names no variant")
    output: Path = arguments.output.expanduser()
    planned = plan_runs(
        table,
        arguments.table,
        output,
        config=arguments.config,
        overrides=arguments.overrides,
        only=only,
        seeds=arguments.seeds,
    )
    tabulated = with_earlier_runs(
        planned, table, arguments.table, output, config=arguments.config, overrides=arguments.overrides
    )
    for each in tabulated:
        check_same_settings(each)
    collect(tabulated)  # earlier runs that no table can hold together are refused before another is trained
    check_runs([each for each in planned if not is_finished(each)], output)
    failed: list[str] = []
    status = 0
    for number, each in enumerate(planned, start=1):
        name = f"[{number}/{len(planned)}] {each.variant}, seed {each.seed}"
        if is_finished(each):
            sys.stdout.write(f"{name}: finished already\n")
            continue
        sys.stdout.write(f"{name}: training, see {folder_of(each).root / LOG}\n")
        sys.stdout.flush()
        started = time.monotonic()
        status = train(each, arguments.launcher, shlex.split(arguments.launcher_args))
        sys.stdout.write(f"{name}: status {status} after {time.monotonic() - started:.0f} s\n")
        if status == EXIT_PREEMPTED:
            break
        if status:
            failed.append(f"{each.variant}, seed {each.seed}: see {folder_of(each).root / LOG}")
    earlier = [f"{each.variant}, seed {each.seed}" for each in tabulated if each not in planned and is_finished(each)]
    if earlier:
        sys.stdout.write(f"from earlier calls, in the table too: {'; '.join(earlier)}\n")
    for sentence in failed:
        sys.stderr.write(f"failed: {sentence}\n")
    for file in write_results(output, table, collect(tabulated)):
        sys.stdout.write(f"table: {file}\n")
    if status == EXIT_PREEMPTED:
        return EXIT_PREEMPTED
    return 1 if failed else 0
