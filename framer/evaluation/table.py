"""The table of PSNR and SSIM, SR against bicubic, over a set of photographs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean

from framer.errors import UserError
from framer.evaluation.metrics import PSNR_ID, SSIM_ID, Image, psnr, ssim
from framer.files import write_text


@dataclass(frozen=True)
class EvaluationRow:
    """One photograph, or the mean of several: what bicubic enlargement and SR reach against the original.

    Attributes:
        name: The photograph's name.
        psnr_bicubic: PSNR in dB of the bicubic enlargement of the LR image.
        psnr_sr: PSNR in dB of the super-resolved image.
        ssim_bicubic: SSIM of the bicubic enlargement.
        ssim_sr: SSIM of the super-resolved image.
    """

    name: str
    psnr_bicubic: float
    psnr_sr: float
    ssim_bicubic: float
    ssim_sr: float

    @property
    def psnr_gain(self) -> float:
        """PSNR of SR minus that of bicubic in dB; above 0 where SR is better."""
        return self.psnr_sr - self.psnr_bicubic

    @property
    def ssim_gain(self) -> float:
        """SSIM of SR minus that of bicubic; above 0 where SR is better."""
        return self.ssim_sr - self.ssim_bicubic


def evaluate(
    names: Sequence[str], sr: Sequence[Image], bicubic: Sequence[Image], hr: Sequence[Image]
) -> list[EvaluationRow]:
    """Measures SR and bicubic against the originals, picture by picture.

    Args:
        names: The photographs' names, each once.
        sr: Super-resolved pictures, RGB ``[H, W, 3]`` in [0, 1], in the order of ``names``.
        bicubic: Bicubic enlargements of the LR images, likewise.
        hr: The originals, likewise; sizes may differ between photographs.

    Returns:
        A row for each photograph, in the order given.

    Raises:
        TypeError: A picture is not a floating-point array.
        ValueError: Nothing to evaluate, lengths differ, a name comes twice, or a picture is refused by the
            metrics (the message names the photograph).
    """
    lengths = {"names": len(names), "sr": len(sr), "bicubic": len(bicubic), "hr": len(hr)}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"names, sr, bicubic and hr must be equally long, got {lengths}")
    if not names:
        raise ValueError("no pictures to evaluate")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"each name must come once, got more than one picture of: {', '.join(twice)}")
    rows = []
    for name, sr_image, bicubic_image, hr_image in zip(names, sr, bicubic, hr, strict=True):
        try:
            row = EvaluationRow(
                name=name,
                psnr_bicubic=psnr(bicubic_image, hr_image),
                psnr_sr=psnr(sr_image, hr_image),
                ssim_bicubic=ssim(bicubic_image, hr_image),
                ssim_sr=ssim(sr_image, hr_image),
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        rows.append(row)
    return rows


def mean_row(rows: Sequence[EvaluationRow]) -> EvaluationRow:
    """Averages each number over the photographs.

    Args:
        rows: At least one row.

    Returns:
        A row named ``mean``: arithmetic means, of PSNR in dB.

    Raises:
        ValueError: No rows.
    """
    if not rows:
        raise ValueError("no evaluation rows to average")
    return EvaluationRow(
        name="mean",
        psnr_bicubic=fmean(row.psnr_bicubic for row in rows),
        psnr_sr=fmean(row.psnr_sr for row in rows),
        ssim_bicubic=fmean(row.ssim_bicubic for row in rows),
        ssim_sr=fmean(row.ssim_sr for row in rows),
    )


def markdown_table(rows: Sequence[EvaluationRow]) -> str:
    """Formats the table: a line a photograph, the means, the differences, and the metric ids below.

    Args:
        rows: At least one row.

    Returns:
        GitHub-flavoured Markdown that ends with a newline.

    Raises:
        ValueError: No rows.
    """
    mean = mean_row(rows)
    lines = [
        "| photograph | PSNR bicubic (dB) | PSNR SR (dB) | gain (dB) | SSIM bicubic | SSIM SR | gain |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(_markdown_line(row, escape_cell(row.name), bold=False) for row in rows),
        _markdown_line(mean, f"mean of {len(rows)}", bold=True),
    ]
    ids = [f"PSNR: `{PSNR_ID}`  ", f"SSIM: `{SSIM_ID}`"]
    return "\n".join([*lines, "", *ids]) + "\n"


def escape_cell(text: str) -> str:
    """Escapes a text so that it stays one cell of a Markdown table, shown as written.

    Args:
        text: Any text.

    Returns:
        The text on one line, with the characters that Markdown would interpret escaped.
    """
    # An underscore inside a word, as in a setting's name, is plain text to GitHub and stays readable.
    return re.sub(r"[\\`*|<>\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))


def _markdown_line(row: EvaluationRow, label: str, *, bold: bool) -> str:
    cells = [
        label,
        f"{row.psnr_bicubic:.2f}",
        f"{row.psnr_sr:.2f}",
        f"{row.psnr_gain:+.2f}",
        f"{row.ssim_bicubic:.4f}",
        f"{row.ssim_sr:.4f}",
        f"{row.ssim_gain:+.4f}",
    ]
    return "| " + " | ".join(f"**{cell}**" if bold else cell for cell in cells) + " |"


def write_evaluation(path: Path, rows: Sequence[EvaluationRow]) -> None:
    """Writes the table as JSON, whole or not at all.

    The object holds ``metrics`` (the ids), ``rows`` and ``mean``. An infinite PSNR is written as the text
    ``"inf"``, for JSON has no such number.

    Args:
        path: The file to create or replace, in a folder that exists.
        rows: At least one row.

    Raises:
        UserError: The folder cannot be written to.
        ValueError: No rows.
    """
    document = {
        "metrics": {"psnr": PSNR_ID, "ssim": SSIM_ID},
        "rows": [_to_json(row) for row in rows],
        "mean": _to_json(mean_row(rows)),
    }
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _to_json(row: EvaluationRow) -> dict[str, str | float]:
    return {key: str(value) if value == float("inf") else value for key, value in asdict(row).items()}


def read_evaluation(path: Path) -> list[EvaluationRow]:
    """Reads what :func:`write_evaluation` wrote.

    Args:
        path: The JSON file.

    Returns:
        The rows, in order, without the mean.

    Raises:
        UserError: The file is missing, is not such a table, or was measured under other metric ids.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        metric_ids = document["metrics"]
        rows = [_from_json(row) for row in document["rows"]]
    except OSError as error:
        raise UserError(f"{path}: cannot read the evaluation: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not an evaluation table ({type(error).__name__}: {error}); evaluate the run again"
        ) from error
    expected = {"psnr": PSNR_ID, "ssim": SSIM_ID}
    if metric_ids != expected:
        raise UserError(f"{path}: measured as {metric_ids}, which cannot be compared with {expected}; evaluate again")
    return rows


def _from_json(row: dict[str, str | float]) -> EvaluationRow:
    numbers = {field.name: float(row[field.name]) for field in fields(EvaluationRow) if field.name != "name"}
    return EvaluationRow(name=str(row["name"]), **numbers)
