"""Writes ``report.md``: what a run trained, how good its pictures are, and what its plots show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import quote

from framer.errors import UserError
from framer.evaluation.table import EvaluationRow, escape_cell, markdown_table, mean_row
from framer.files import write_text

REPORT_NAME = "report.md"
_HELD_OUT: Final = "held-out photographs"
_TRAINED_ON: Final = "photographs that may have been trained on"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture of the report.

    Attributes:
        path: The picture's file, relative to the run folder and inside it.
        title: Heading above the picture, and its text for those who cannot see it.
        caption: What the picture shows, as the function that drew it returned it.
    """

    path: Path
    title: str
    caption: str


def write_report(
    run_folder: Path,
    *,
    title: str,
    command: str,
    config_summary: Mapping[str, str],
    evaluation: Sequence[EvaluationRow],
    figures: Sequence[Figure],
    notes: Sequence[str],
    before: Sequence[EvaluationRow] = (),
    trained_on: bool = False,
) -> Path:
    """Writes ``report.md`` into a run folder, whole or not at all.

    Args:
        run_folder: The run's folder, which holds the figures.
        title: The report's heading.
        command: The shell command that makes the run again.
        config_summary: Setting and value, in the order to show.
        evaluation: A row for each held-out photograph; empty where none were given, and the report says so.
        figures: The pictures, in the order to show.
        notes: Remarks for the reader, each a Markdown paragraph.
        before: The rows of the same photographs before the first step; empty where they were not measured.
        trained_on: Whether the photographs may be among those trained on, which the heading then says.

    Returns:
        The path of the report.

    Raises:
        UserError: A figure's file is missing, or lies outside the run folder.
    """
    for figure in figures:
        _check_figure(run_folder, figure)
    sections = [
        f"# {_one_line(title)}",
        "## What was trained\n\n" + _settings(config_summary),
        f"To run it again:\n\n{_code_block(command)}",
        f"## SR against bicubic on {_TRAINED_ON if trained_on else _HELD_OUT}\n\n" + _quality(evaluation, before),
        *(_picture(figure) for figure in figures),
    ]
    if notes:
        sections.append("## Notes\n\n" + "\n".join(f"* {note.strip()}" for note in notes))
    report = run_folder / REPORT_NAME
    write_text(report, "\n\n".join(section.strip("\n") for section in sections) + "\n")
    return report


def _check_figure(run_folder: Path, figure: Figure) -> None:
    if figure.path.is_absolute() or ".." in figure.path.parts:
        raise UserError(f"figure {figure.path}: the report needs a path inside {run_folder}, relative to it")
    if not (run_folder / figure.path).is_file():
        raise UserError(
            f"figure {figure.path} ({figure.title}) is missing from {run_folder}: draw it before the report"
        )


def _settings(config_summary: Mapping[str, str]) -> str:
    rows = [f"| {escape_cell(setting)} | {escape_cell(value)} |" for setting, value in config_summary.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _quality(evaluation: Sequence[EvaluationRow], before: Sequence[EvaluationRow]) -> str:
    if not evaluation:
        return "No held-out photographs were evaluated."
    mean = mean_row(evaluation)
    better = sum(row.psnr_gain > 0 for row in evaluation)
    summary = (
        f"Mean PSNR: SR {mean.psnr_sr:.2f} dB, bicubic {mean.psnr_bicubic:.2f} dB, gain "
        f"{mean.psnr_gain:+.2f} dB; SR is higher on {better} of {len(evaluation)} crops. "
        f"Mean SSIM: SR {mean.ssim_sr:.4f}, bicubic {mean.ssim_bicubic:.4f}, gain {mean.ssim_gain:+.4f}. "
        "A gain is SR minus bicubic: above 0, SR is better."
    )
    if before:
        started = mean_row(before)
        summary += (
            f"\n\nBefore training: SR {started.psnr_sr:.2f} dB and {started.ssim_sr:.4f} on the same crops; training "
            f"changed that by {mean.psnr_sr - started.psnr_sr:+.2f} dB and {mean.ssim_sr - started.ssim_sr:+.4f}."
        )
    return f"{summary}\n\n{markdown_table(evaluation)}"


def _picture(figure: Figure) -> str:
    link = quote(str(PurePosixPath(figure.path)))
    heading = _one_line(figure.title)
    alternative = escape_cell(figure.title)
    return f"## {heading}\n\n![{alternative}]({link})\n\n{_one_line(figure.caption)}"


def _code_block(command: str) -> str:
    return f"```bash\n{command.strip()}\n```"


def _one_line(text: str) -> str:
    return " ".join(text.split())
