"""What an evaluation leaves on the disk: a table for people, JSON for programs, a CSV line a picture."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import framer
from framer.evaluation.comparison import (
    CONFIDENCE,
    FEW_PICTURES,
    RESAMPLES,
    SEED,
    Difference,
    Interval,
    Mean,
    compare,
    summarise,
)
from framer.evaluation.folders import Evaluation, Measured, NotComputed
from framer.evaluation.learned import FID_FEATURES
from framer.evaluation.published import PublishedResult
from framer.evaluation.table import escape_cell
from framer.files import write_text, writing

TABLE_FILE: Final = "evaluation.md"
JSON_FILE: Final = "evaluation.json"
CSV_FILE: Final = "per_image.csv"

_FORMAT = 1
_LIBRARIES = ("numpy", "pillow", "scikit-image", "scipy", "torch")


class Pair(NamedTuple):
    """Two runs that are compared: the difference is ``run`` minus ``against``."""

    run: str
    against: str


def pairs_of_runs(evaluation: Evaluation) -> list[Pair]:
    """Every run against every one before it."""
    return [Pair(later.name, earlier.name) for earlier, later in itertools.combinations(evaluation.runs, 2)]


def difference(result: Measured, pair: Pair) -> Difference:
    """A metric's paired differences between two runs."""
    return compare(
        result.values[pair.run], result.values[pair.against], higher_is_better=result.metric.higher_is_better
    )


def measured_per_picture(evaluation: Evaluation) -> Iterator[Measured]:
    """The metrics that have a value for each picture."""
    return (result for result in evaluation.results if isinstance(result, Measured) and not result.of_sets)


def write_results(folder: Path, evaluation: Evaluation, *, published: PublishedResult | None = None) -> str:
    """Writes the table, the JSON and the CSV, each whole or not at all.

    Args:
        folder: Where to, made where it is missing.
        evaluation: What was measured.
        published: Numbers of a paper or its software to stand beside the runs' means.

    Returns:
        The table.

    Raises:
        UserError: The folder cannot be written to.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    table = markdown(evaluation, published=published)
    document = json.dumps(as_json(evaluation), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / JSON_FILE, document + "\n")
    write_text(folder / CSV_FILE, per_image_csv(evaluation))
    write_text(folder / TABLE_FILE, table)
    return table


def markdown(evaluation: Evaluation, *, published: PublishedResult | None = None) -> str:
    """The table of means, that of differences where there are several runs, and what each number is.

    Returns:
        GitHub-flavoured Markdown that ends with a newline.
    """
    sections = [_heading(evaluation), _means(evaluation)]
    if len(evaluation.runs) > 1 and any(True for _ in measured_per_picture(evaluation)):
        sections.append(_differences(evaluation))
    if published is not None:
        sections.append(_against_published(evaluation, published))
    sections.append(_notes(evaluation))
    return "\n\n".join(sections) + "\n"


def _heading(evaluation: Evaluation) -> str:
    settings, count = evaluation.settings, len(evaluation.names)
    reference = "without originals" if evaluation.reference is None else f"against `{evaluation.reference.folder}`"
    runs = ", ".join(f"{escape_cell(run.name)} (`{run.folder}`)" for run in evaluation.runs)
    return (
        f"# Evaluation, protocol {settings.protocol}\n\n{count} {'picture' if count == 1 else 'pictures'} a run, "
        f"{reference}, border cut off: {settings.border} px.\n\nRuns: {runs}."
    )


def _means(evaluation: Evaluation) -> str:
    names = [run.name for run in evaluation.runs]
    lines = [
        "| metric | " + " | ".join(map(escape_cell, names)) + " | what it is |",
        "|---|" + "---:|" * len(names) + "---|",
    ]
    for result in evaluation.results:
        arrow = "higher is better" if result.metric.higher_is_better else "lower is better"
        head = f"{escape_cell(result.metric.label)}, {arrow}"
        if isinstance(result, NotComputed):
            cells = ["not computed"] * len(names)
            what = f"not computed, because {_as_code(result.reason)}. It would be: `{result.id}`"
        else:
            cells = [_mean_cell(result, name) for name in names]
            what = f"`{result.id}`; {escape_cell(result.library)}"
        lines.append("| " + " | ".join([head, *cells, what]) + " |")
    return "\n".join(lines)


def _as_code(text: str) -> str:
    """A message as it is, with the commands that it gives fit to be copied from the terminal."""
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _mean_cell(result: Measured, run: str) -> str:
    decimals = result.metric.decimals
    if result.of_sets:
        return f"{result.values[run][0]:.{decimals}f}"
    mean = summarise(result.values[run])
    if math.isnan(mean.value):
        return "not defined for any picture"
    finite = f"{mean.finite:.{decimals}f}{_bounds(mean.interval, decimals)}"
    undefined = f"not defined for {mean.undefined}" if mean.undefined else ""
    if not mean.infinite:
        return finite + (f" ({undefined})" if undefined else "")
    others = f"{finite} over the {mean.pictures} others" if mean.pictures else "as all others"
    remarks = [f"{mean.infinite} same as the original", others, *([undefined] if undefined else [])]
    return f"{mean.value:.{decimals}f} ({'; '.join(remarks)})"


def _bounds(interval: Interval | None, decimals: int, *, sign: str = "") -> str:
    return "" if interval is None else f" [{interval.low:{sign}.{decimals}f}, {interval.high:{sign}.{decimals}f}]"


def _differences(evaluation: Evaluation) -> str:
    lines = [
        "## Differences, picture by picture",
        "",
        "| metric | difference | mean | better | same | worse | win rate |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for result in measured_per_picture(evaluation):
        for pair in pairs_of_runs(evaluation):
            found, decimals = difference(result, pair), result.metric.decimals
            mean = "none" if math.isnan(found.mean) else f"{found.mean:+.{decimals}f}"
            left_out = f" ({found.left_out} left out)" if found.left_out else ""
            rate = "none" if math.isnan(found.win_rate) else f"{found.win_rate:.0%}"
            cells = [
                escape_cell(result.metric.label),
                f"{escape_cell(pair.run)} - {escape_cell(pair.against)}",
                f"{mean}{_bounds(found.interval, decimals, sign='+')}{left_out}",
                *(str(number) for number in (found.wins, found.ties, found.losses)),
                rate,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _against_published(evaluation: Evaluation, published: PublishedResult) -> str:
    lines = [
        f"## Against {published.title}",
        "",
        f"Published over {published.pictures} pictures in {published.source}; measured over {len(evaluation.names)}. "
        f"{published.remark}",
        "",
        "| metric | published | run | measured | difference |",
        "|---|---:|---|---:|---:|",
    ]
    results = {result.metric.name: result for result in evaluation.results}
    for name, value in published.values.items():
        result = results.get(name)
        if not isinstance(result, Measured):
            lines.append(f"| {name} | {value} | | not computed | |")
            continue
        for run, values in result.values.items():
            mean = float(values[0]) if result.of_sets else summarise(values).value
            lines.append(f"| {name} | {value} | {escape_cell(run)} | {mean:.4f} | {mean - value:+.4f} |")
    return "\n".join(lines)


def _notes(evaluation: Evaluation) -> str:
    count = len(evaluation.names)
    notes = [
        f"In brackets: the middle {CONFIDENCE:.0%} of the means of {RESAMPLES} resamples of the pictures (percentile "
        f"bootstrap, seed {SEED}). Differences are of the same picture in both runs; better, same and worse count "
        "pictures, and a tie is half a win.",
    ]
    if count < 2:
        notes.append("One picture: there is no interval, and nothing can be said about other pictures.")
    elif count < FEW_PICTURES:
        notes.append(
            f"Only {count} pictures: intervals of so few are too narrow, and say little about other pictures; compare "
            f"over {FEW_PICTURES} or more."
        )
    if count < FID_FEATURES and any(isinstance(r, Measured) and r.of_sets for r in evaluation.results):
        notes.append(
            f"FID is of {count} pictures, fewer than {FID_FEATURES}, the length of its features: it depends on how "
            "many there are, and only compares runs over the same pictures."
        )
    notes.append("A metric's sets of weights and its library's version change its numbers; compare only equal ids.")
    return "\n".join(f"* {note}" for note in notes)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON takes it: infinite numbers as the text ``"inf"``, numbers that are not defined as null."""
    settings = evaluation.settings
    per_picture = list(measured_per_picture(evaluation))
    return {
        "format": _FORMAT,
        "protocol": settings.protocol,
        "border": settings.border,
        "device": settings.device,
        "versions": _versions(),
        "runs": {run.name: str(run.folder) for run in evaluation.runs},
        "reference": None if evaluation.reference is None else str(evaluation.reference.folder),
        "metrics": {result.metric.name: _metric_json(result) for result in evaluation.results},
        "differences": [
            {"metric": result.metric.name, "run": pair.run, "against": pair.against}
            | _difference_json(difference(result, pair))
            for result in per_picture
            for pair in pairs_of_runs(evaluation)
        ],
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": SEED, "kind": "percentile"},
        "pictures": [
            {
                "name": name,
                "height": evaluation.sizes[i].height,
                "width": evaluation.sizes[i].width,
                "sha256": {run: files[name].sha256 for run, files in evaluation.files.items()},
                "values": {
                    result.metric.name: {run: _number(float(values[i])) for run, values in result.values.items()}
                    for result in per_picture
                },
            }
            for i, name in enumerate(evaluation.names)
        ],
    }


def _versions() -> dict[str, str]:
    return {"framer-diffusion": framer.__version__, "python": platform.python_version()} | {
        library: version(library) for library in _LIBRARIES
    }


def _metric_json(result: Measured | NotComputed) -> dict[str, Any]:
    described = {"id": result.id, "higher_is_better": result.metric.higher_is_better}
    if isinstance(result, NotComputed):
        return described | {"not_computed_because": result.reason}
    return described | {
        "library": result.library,
        "weights_sha256": result.weights,
        "means": {
            run: {"value": _number(float(values[0]))} if result.of_sets else _mean_json(summarise(values))
            for run, values in result.values.items()
        },
    }


def _mean_json(mean: Mean) -> dict[str, Any]:
    return {
        "value": _number(mean.value),
        "finite": _number(mean.finite),
        "interval": mean.interval,
        "pictures": mean.pictures,
        "infinite": mean.infinite,
        "undefined": mean.undefined,
    }


def _difference_json(found: Difference) -> dict[str, Any]:
    return {
        "mean": _number(found.mean),
        "interval": found.interval,
        "pictures": found.pictures,
        "left_out": found.left_out,
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
        "win_rate": _number(found.win_rate),
    }


def _number(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value


def per_image_csv(evaluation: Evaluation) -> str:
    """A line a run and picture: ``run``, ``name``, then the metrics; ``inf``, and empty where not defined."""
    results = list(measured_per_picture(evaluation))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "name", *(result.metric.name for result in results)])
    for run in evaluation.runs:
        for index, name in enumerate(evaluation.names):
            numbers = (_number(float(result.values[run.name][index])) for result in results)
            writer.writerow([run.name, name, *("" if number is None else number for number in numbers)])
    return text.getvalue()
