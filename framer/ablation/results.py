"""The table of an ablation: quality, step time and memory of each variant over its seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Final

from framer.ablation.plan import PlannedRun
from framer.ablation.runs import folder_of, is_finished
from framer.analysis.paper.labels import wrapped
from framer.config.ablation import AblationTable
from framer.data.sources import with_shard_settings
from framer.errors import UserError
from framer.evaluation.metrics import PSNR_ID, SSIM_ID
from framer.evaluation.table import EvaluationRow, escape_cell, mean_row, read_evaluation
from framer.files import write_text
from framer.plotting import GRID_COLOUR, LF_COLOUR, new_canvas, save_canvas, style_axes
from framer.training.run_folder import RunFolder

_WARM_UP_SHARE: Final = 0.1
"""Part of a run's steps, at its beginning, whose times are left out."""

_MEASURED_ON: Final = (
    "data.evaluation",
    "data.scale",
    "data.degradation",
    "evaluation.crop_size",
    "evaluation.crops_per_photo",
    "evaluation.seed",
)
"""Settings that choose the images that a run is measured on."""
_LIKE_PSNR, _LIKE_SSIM = 0.01, 0.0001
"""What bicubic may differ by on the same image, where other releases of libraries made its low-resolution version."""

_SEEDS_NOTE: Final = (
    "Mean over the seeds, and from lowest to highest. A difference smaller than these ranges says nothing."
)
_ONE_SEED_NOTE: Final = "One seed: how much of a difference is chance is not known; --seeds 0 1 2 tells."


@dataclass(frozen=True)
class RunResult:
    """What one run reached.

    Attributes:
        seed: Its seed.
        psnr: Mean PSNR in dB over the evaluation crops.
        ssim: Mean SSIM.
        psnr_bicubic: Mean PSNR of the bicubic enlargement.
        ssim_bicubic: Mean SSIM of it.
        step_seconds: Median time of a step, the first tenth left out; None where no time was logged.
        memory_bytes: Most memory of rank 0: of the GPU, or the process's on a CPU; None where none was logged.
        memory_of: ``GPU`` or ``process``.
    """

    seed: int
    psnr: float
    ssim: float
    psnr_bicubic: float
    ssim_bicubic: float
    step_seconds: float | None
    memory_bytes: int | None
    memory_of: str


@dataclass(frozen=True)
class VariantResult:
    """A row of the table.

    Attributes:
        name: The variant's name.
        title: What the table calls it.
        runs: Its finished runs.
        unfinished: Seeds of those that are not finished.
        measured_on: Of the settings that choose the images it is measured on, those that variants of the table differ
            in; ``key=value``, separated by commas.
    """

    name: str
    title: str
    runs: list[RunResult]
    unfinished: list[int]
    measured_on: str = ""


def collect(planned: Sequence[PlannedRun]) -> list[VariantResult]:
    """Reads what the runs left on disk, in the order planned.

    Raises:
        UserError: A file of a finished run is damaged, or was measured by other metrics; or runs whose settings choose
            the same images were measured on others.
    """
    choices = _choices_of_images(planned)
    results: dict[str, VariantResult] = {}
    evaluated: dict[str, list[tuple[Path, list[EvaluationRow]]]] = {}
    for run in planned:
        choice = choices[run.variant]
        row = results.setdefault(run.variant, VariantResult(run.variant, run.title, [], [], choice))
        if is_finished(run):
            rows = read_evaluation(folder_of(run).sample_table(run.config.training.max_steps))
            evaluated.setdefault(choice, []).append((folder_of(run).root, rows))
            row.runs.append(_result(run, mean_row(rows)))
        else:
            row.unfinished.append(run.seed)
    for runs in evaluated.values():
        _check_same_images(runs)
    return list(results.values())


def _choices_of_images(planned: Sequence[PlannedRun]) -> dict[str, str]:
    """By variant, see :attr:`VariantResult.measured_on`."""
    settings: dict[str, dict[str, object]] = {}
    for run in planned:
        content = with_shard_settings(run.config).model_dump(mode="json")
        keys = (key.split(".") for key in _MEASURED_ON)
        settings[run.variant] = {".".join(key): content[key[0]][key[1]] for key in keys}
    differing = [key for key in _MEASURED_ON if len({each[key] for each in settings.values()}) > 1]
    return {variant: ", ".join(f"{key}={each[key]}" for key in differing) for variant, each in settings.items()}


def _check_same_images(runs: Sequence[tuple[Path, list[EvaluationRow]]]) -> None:
    """Compares what bicubic enlargement reached, which depends on the images alone."""
    first, expected = runs[0]
    others = [root for root, rows in runs[1:] if not _same_images(expected, rows)]
    if others:
        raise UserError(
            f"{', '.join(map(str, others))}: measured on other images than {first}, whose bicubic PSNR and SSIM "
            "differ, so that one table cannot hold them: the photographs of data.evaluation have changed in between. "
            "Where they are again what all are to be measured on, remove report.md of the runs that were measured on "
            "others, and run the same command: they are measured anew, and not trained"
        )


def _same_images(expected: Sequence[EvaluationRow], rows: Sequence[EvaluationRow]) -> bool:
    return len(expected) == len(rows) and all(
        one.name == other.name
        and math.isclose(one.psnr_bicubic, other.psnr_bicubic, rel_tol=0, abs_tol=_LIKE_PSNR)
        and math.isclose(one.ssim_bicubic, other.ssim_bicubic, rel_tol=0, abs_tol=_LIKE_SSIM)
        for one, other in zip(expected, rows, strict=True)
    )


def write_results(folder: Path, table: AblationTable, results: Sequence[VariantResult]) -> list[Path]:
    """Writes the table as ``table.md``, ``table.json`` and, where a run is finished, ``table.png``.

    Args:
        folder: It exists.
        table: The study.
        results: From :func:`collect`.

    Returns:
        The files.

    Raises:
        UserError: The folder cannot be written to.
    """
    files = [folder / "table.md", folder / "table.json"]
    write_text(files[0], markdown(table, results))
    document = {
        "title": table.title,
        "metrics": {"psnr": PSNR_ID, "ssim": SSIM_ID},
        "variants": [asdict(row) for row in results],
        "missing": table.missing,
    }
    write_text(files[1], json.dumps(document, indent=2) + "\n")
    if any(row.runs for row in results):
        files.append(folder / "table.png")
        plot_results(files[-1], [row for row in results if row.runs], title=table.title)
    return files


def markdown(table: AblationTable, results: Sequence[VariantResult]) -> str:
    """The table as Markdown: bicubic, a line for each variant, and the metric ids below."""
    lines = [
        f"# {' '.join(table.title.split())}",
        "",
        "| variant | PSNR (dB) | SSIM | step (s) | memory (MB) | seeds |",
        "|---|---:|---:|---:|---:|---|",
    ]
    finished = [run for row in results for run in row.runs]
    for choice in dict.fromkeys(row.measured_on for row in results if row.runs):
        runs = [run for row in results if row.measured_on == choice for run in row.runs]
        label = f"bicubic, {choice}" if choice else "bicubic"
        lines.append(
            f"| {escape_cell(label)} | {_spread([run.psnr_bicubic for run in runs], 2)} | "
            f"{_spread([run.ssim_bicubic for run in runs], 4)} | | | |"
        )
    for row in results:
        cells = [
            _spread([run.psnr for run in row.runs], 2),
            _spread([run.ssim for run in row.runs], 4),
            _spread([run.step_seconds for run in row.runs if run.step_seconds is not None], 3),
            _spread([run.memory_bytes / 1e6 for run in row.runs if run.memory_bytes is not None], 0),
            " ".join(str(run.seed) for run in row.runs)
            + (f" (not finished: {' '.join(map(str, row.unfinished))})" if row.unfinished else ""),
        ]
        lines.append(f"| {escape_cell(row.title)} | {' | '.join(cells)} |")
    memories = sorted({run.memory_of for run in finished if run.memory_bytes is not None})
    lines += [
        "",
        _SEEDS_NOTE if any(len(row.runs) > 1 for row in results) else _ONE_SEED_NOTE,
        "",
        f"PSNR: `{PSNR_ID}`  ",
        f"SSIM: `{SSIM_ID}`  ",
        "Step: median over the run, without its first tenth; other work on the machine counts.  ",
        f"Memory: most of rank 0, of the {' or the '.join(memories) or 'device'}.",
    ]
    if table.missing:
        lines += ["", "Not in this table:", "", *(f"* {' '.join(row.split())}" for row in table.missing)]
    return "\n".join(lines) + "\n"


def plot_results(path: Path, results: Sequence[VariantResult], *, title: str) -> None:
    """Plots PSNR and SSIM of every variant: a dot for each seed, the mean as a bar, bicubic as a dashed line.

    Args:
        path: The PNG to create or replace.
        results: Variants with finished runs.
        title: The figure's title.
    """
    canvas = new_canvas(11.0, 1.6 + 0.55 * len(results), title)
    plots = canvas.subplots(1, 2, sharey=True)
    places = range(len(results))
    for axes, name, label in zip(plots, ("psnr", "ssim"), ("PSNR (dB)", "SSIM"), strict=True):
        for place, row in zip(places, results, strict=True):
            values = [getattr(run, name) for run in row.runs]
            axes.plot([min(values), max(values)], [place, place], color=LF_COLOUR, linewidth=2.0)
            axes.plot(values, [place] * len(values), "o", color=LF_COLOUR, markersize=6)
            axes.plot([fmean(values)], [place], "|", color="black", markersize=18, markeredgewidth=2.0)
        # Of each row, whose images may be others; where they are the same, it is one line.
        bicubic = [fmean(getattr(run, f"{name}_bicubic") for run in row.runs) for row in results]
        for place, value in zip(places, bicubic, strict=True):
            axes.plot([value, value], [place - 0.5, place + 0.5], color="#555555", linestyle="--", linewidth=1.2)
        left, right = axes.get_xlim()
        side = "right" if bicubic[0] > (left + right) / 2 else "left"
        axes.text(bicubic[0], -0.75, " bicubic ", fontsize=9, color="#555555", va="center", ha=side)
        axes.locator_params(axis="x", nbins=6)
        style_axes(axes, x_label=label, y_label="")
        axes.grid(visible=True, axis="y", color=GRID_COLOUR, linewidth=0.8)
    plots[0].set_yticks(list(places), [wrapped(row.title, 38, lines=2) for row in results])
    plots[0].set_ylim(len(results) - 0.5, -1.0)
    save_canvas(canvas, path)


def _result(run: PlannedRun, mean: EvaluationRow) -> RunResult:
    seconds, memory, memory_of = _cost(folder_of(run))
    return RunResult(
        seed=run.seed,
        psnr=mean.psnr_sr,
        ssim=mean.ssim_sr,
        psnr_bicubic=mean.psnr_bicubic,
        ssim_bicubic=mean.ssim_bicubic,
        step_seconds=seconds,
        memory_bytes=memory,
        memory_of=memory_of,
    )


def _cost(folder: RunFolder) -> tuple[float | None, int | None, str]:
    """Step time and memory of a run, and whose memory it is."""
    try:
        lines = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.metrics}: cannot read the metrics: {error}") from error
    lines = lines[round(_WARM_UP_SHARE * len(lines)) :]
    seconds = [line["time"]["seconds"] for line in lines if line.get("time")]
    memory = [line["memory"] for line in lines if line.get("memory")]
    on_device = [use["device_peak_bytes"] for use in memory if use.get("device_peak_bytes") is not None]
    most = on_device or [use["resident_bytes"] for use in memory]
    return (median(seconds) if seconds else None, max(most, default=None), "GPU" if on_device else "process")


def _spread(values: Iterable[float], digits: int) -> str:
    numbers = list(values)
    if not numbers:
        return ""
    if len(numbers) == 1 or f"{min(numbers):.{digits}f}" == f"{max(numbers):.{digits}f}":
        return f"{fmean(numbers):.{digits}f}"
    return f"{fmean(numbers):.{digits}f} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"
