"""The table of an ablation: quality, step time and memory of each variant over its seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Final

from framer.ablation.plan import PlannedRun
from framer.ablation.runs import folder_of, is_finished
from framer.analysis.paper.labels import wrapped
from framer.config.ablation import AblationTable
from framer.errors import UserError
from framer.evaluation.metrics import PSNR_ID, SSIM_ID
from framer.evaluation.table import escape_cell, mean_row, read_evaluation
from framer.files import write_text
from framer.plotting import GRID_COLOUR, LF_COLOUR, new_canvas, save_canvas, style_axes
from framer.training.run_folder import RunFolder

_WARM_UP_SHARE: Final = 0.1
"""Part of a run's steps, at its beginning, whose times are left out."""

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
    """

    name: str
    title: str
    runs: list[RunResult]
    unfinished: list[int]


def collect(planned: Sequence[PlannedRun]) -> list[VariantResult]:
    """Reads what the runs left on disk, in the order planned.

    Raises:
        UserError: A file of a finished run is damaged, or was measured by other metrics.
    """
    results: dict[str, VariantResult] = {}
    for run in planned:
        row = results.setdefault(run.variant, VariantResult(run.variant, run.title, [], []))
        if is_finished(run):
            row.runs.append(_result(run))
        else:
            row.unfinished.append(run.seed)
    return list(results.values())


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
    """The table as Markdown: a line for each variant, bicubic first, and the metric ids below."""
    lines = [
        f"# {' '.join(table.title.split())}",
        "",
        "| variant | PSNR (dB) | SSIM | step (s) | memory (MB) | seeds |",
        "|---|---:|---:|---:|---:|---|",
    ]
    finished = [run for row in results for run in row.runs]
    if finished:
        lines.append(
            f"| bicubic | {_spread([run.psnr_bicubic for run in finished], 2)} | "
            f"{_spread([run.ssim_bicubic for run in finished], 4)} | | | |"
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
        bicubic = fmean(getattr(run, f"{name}_bicubic") for row in results for run in row.runs)
        axes.axvline(bicubic, color="#555555", linestyle="--", linewidth=1.2)
        left, right = axes.get_xlim()
        side = "right" if bicubic > (left + right) / 2 else "left"
        axes.text(bicubic, -0.75, " bicubic ", fontsize=9, color="#555555", va="center", ha=side)
        axes.locator_params(axis="x", nbins=6)
        style_axes(axes, x_label=label, y_label="")
        axes.grid(visible=True, axis="y", color=GRID_COLOUR, linewidth=0.8)
    plots[0].set_yticks(list(places), [wrapped(row.title, 38, lines=2) for row in results])
    plots[0].set_ylim(len(results) - 0.5, -1.0)
    save_canvas(canvas, path)


def _result(run: PlannedRun) -> RunResult:
    folder = folder_of(run)
    mean = mean_row(read_evaluation(folder.sample_table(run.config.training.max_steps)))
    seconds, memory, memory_of = _cost(folder)
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
