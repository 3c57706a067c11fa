"""The command ``framer evaluate``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from framer.arguments import given_path, given_text
from framer.errors import UserError
from framer.evaluation.protocols import PROTOCOLS, choose_metrics
from framer.evaluation.published import PUBLISHED
from framer.files import check_writable, writing

HELP = "Measure folders of pictures by a stated protocol, and compare them picture by picture."

PLOT_FILE: Final = "comparison.png"

EXIT_NOT_COMPUTED: Final = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "runs",
        nargs="*",
        type=given_text,
        metavar="FOLDER",
        help="pictures to judge; runs are called like them, or by --name",
    )
    parser.add_argument(
        "--name", action="append", default=[], metavar="NAME=FOLDER", help="one more run, with its name; repeatable"
    )
    parser.add_argument(
        "--reference", type=given_path, metavar="FOLDER", help="the originals, with the same file names"
    )
    parser.add_argument(
        "--lr", type=given_path, metavar="FOLDER", help="the LR images: adds their bicubic enlargement as the first run"
    )
    parser.add_argument(
        "--protocol", choices=sorted(PROTOCOLS), required=True, help="which metrics, and which variants"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help="some of the protocol's metrics; default all; exit status 1 where one named here cannot be computed",
    )
    parser.add_argument(
        "--border", type=int, default=0, help="pixels of each side cut off before anything is measured, default 0"
    )
    parser.add_argument(
        "--download", action="store_true", help="let learned metrics fetch their weights; without it nothing is fetched"
    )
    parser.add_argument("--device", help="of learned metrics: cpu or cuda; default cuda where there is one")
    parser.add_argument("--workers", type=int, help="processes that measure; default one a core, 0 for none")
    parser.add_argument(
        "--published",
        choices=sorted(PUBLISHED),
        help="published numbers of the same pictures, to check the evaluator by",
    )
    parser.add_argument(
        "-o", "--output", type=given_path, required=True, help="folder of the table, JSON, CSV and plot"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures the folders and writes the results.

    Returns:
        Exit status: 1 where a metric that ``--metrics`` names could not be computed.
    """
    named = [_named_by_folder(text) for text in arguments.runs]
    named += [_split_name(text) for text in arguments.name]
    if not named:
        raise UserError("give at least one folder of pictures to judge")
    if arguments.border < 0:
        raise UserError(f"--border must not be negative, got {arguments.border}")
    if arguments.workers is not None and arguments.workers < 0:
        raise UserError(f"--workers must not be negative, got {arguments.workers}")
    published = None if arguments.published is None else PUBLISHED[arguments.published]
    if published is not None and published.protocol != arguments.protocol:
        raise UserError(f"--published {arguments.published} was measured with --protocol {published.protocol}")
    metrics = None if arguments.metrics is None else tuple(arguments.metrics)
    choose_metrics(arguments.protocol, metrics)
    output, reference, lr = (
        None if path is None else path.expanduser().absolute()
        for path in (arguments.output, arguments.reference, arguments.lr)
    )
    assert output is not None
    _check_output(output, [folder for _, folder in named] + [path for path in (reference, lr) if path is not None])
    check_writable(output)

    from framer.evaluation.comparison_plot import plot_comparison
    from framer.evaluation.folders import NotComputed, Settings, evaluate_folders
    from framer.evaluation.picture_sheet import SHEET_FILE, write_picture_sheet
    from framer.evaluation.results import measured_per_picture, write_results

    evaluation = evaluate_folders(
        Settings(
            runs=tuple(named),
            reference=reference,
            lr=lr,
            protocol=arguments.protocol,
            metrics=metrics,
            border=arguments.border,
            workers=arguments.workers,
            device=_device(arguments.device),
            download=arguments.download,
        )
    )
    for name in (PLOT_FILE, SHEET_FILE):  # an earlier evaluation's would lie beside a table that is not theirs
        with writing(output / name):
            (output / name).unlink(missing_ok=True)
    sys.stdout.write(write_results(output, evaluation, published=published))
    if any(True for _ in measured_per_picture(evaluation)):
        sys.stdout.write(f"\n{output / PLOT_FILE}: {plot_comparison(output / PLOT_FILE, evaluation)}\n")
    sys.stdout.write(f"\n{output / SHEET_FILE}: {write_picture_sheet(output / SHEET_FILE, evaluation)}\n")
    if metrics is None:
        return 0
    lacking = [result for result in evaluation.results if isinstance(result, NotComputed)]
    for result in lacking:
        sys.stderr.write(f"not computed: {result.metric.name}: {result.reason}\n")
    return EXIT_NOT_COMPUTED if lacking else 0


def _named_by_folder(text: str) -> tuple[str, Path]:
    folder = Path(text).expanduser().absolute()
    if "=" in text and not folder.exists():
        raise UserError(f"image folder {folder} does not exist; to name a run, give --name {shlex.quote(text)}")
    # A link is called as it is typed; '.' and '..' say no name.
    return (folder.resolve().name if Path(text).name in ("", "..") else folder.name), folder


def _split_name(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name.strip() and equals and folder):
        raise UserError(f"--name {text}: expected NAME=FOLDER, for example --name ours=results/sr")
    return name.strip(), Path(folder).expanduser().absolute()


def _check_output(output: Path, inputs: Sequence[Path]) -> None:
    for folder in inputs:
        if output.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--output {output} lies in {folder}, whose pictures are measured; choose another folder")


def _device(asked: str | None) -> str:
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UserError(f"--device {asked}: not a device; give cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {asked}: torch finds no CUDA device here")
    return asked
