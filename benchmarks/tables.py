"""The report's text, from the measurements of `benchmarks.parts`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Result = dict[str, Any]

OURS = "portable"
COMPARED = "with FRAMER over without"


def document(results: Result, figure: str) -> str:
    """The whole page.

    Args:
        results: By part.
        figure: Path of the figure, relative to the page.
    """
    blocks = [
        "# Benchmarks",
        "Written by `python -m benchmarks.report`, which measures on the machine it runs on; `pytest benchmarks/` "
        "prints the same comparisons with pytest-benchmark. `portable` is `framer_loss` with that backend. The peers "
        "are in `benchmarks/peers.py`: the released script's formula with its complex `fft2`, the `rfft2` form that a "
        "careful engineer would write first, and that form under `torch.compile`. Times are medians of rounds in "
        "which all implementations ran by turns.",
        _requirements(results),
        _loss(results["loss"]),
        _sweep(results["sweep"], figure),
        _step(results["step"]),
        _memory(results["memory"]),
    ]
    return "\n\n".join(blocks) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _machine(part: Result) -> str:
    machine = part["machine"]
    text = (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, Python {machine['python']}, "
        f"{machine['date']}."
    )
    others = _other_cores(part)
    if others:
        text += f" Other processes used at most {max(others):.2f} cores during a round."
    return text


def _other_cores(part: Any) -> list[float]:
    if isinstance(part, dict):
        own = [part["other_cores"]] if part.get("other_cores") is not None else []
        return own + [x for value in part.values() for x in _other_cores(value)]
    if isinstance(part, list):
        return [x for value in part for x in _other_cores(value)]
    return []


def _seconds(table: Result) -> dict[str, float]:
    return {row["name"]: row["seconds"] for row in table["rows"]}


def _requirements(results: Result) -> str:
    magnitude = next(table for table in results["loss"]["tables"] if table["representation"] == "magnitude")
    seconds = _seconds(magnitude)
    ours = seconds[OURS]
    best = min(value for name, value in seconds.items() if "rfft2" in name)
    saved = max(_ours(table)["saved"] / table["feature_bytes"] for table in results["loss"]["tables"])
    step, peak = results["step"]["ratio"][0] - 1, results["memory"]["rows"][0]
    added = peak["with"] / peak["without"] - 1
    rows = [
        (
            "faster than the released formula, magnitude",
            "5 x",
            f"{seconds['released formula'] / ours:.2f} x",
            5 * ours <= seconds["released formula"],
        ),
        (
            "faster than the best of eager and compiled `rfft2`, magnitude",
            "2 x",
            f"{best / ours:.2f} x",
            2 * ours <= best,
        ),
        ("bytes saved for backward beyond the features", "1 %", f"{saved:.4%}".replace("%", " %"), saved <= 0.01),
        ("time of a training step", "+2 %", f"{100 * step:+.2f} %", step <= 0.02),
        ("peak memory of a whole SD3.5-medium step", "+0.1 %", f"{100 * added:+.4f} %", added <= 0.001),
    ]
    return "## Against what was asked for\n\n" + _table(
        ["", "asked for", "measured", ""], [(*row[:3], "met" if row[3] else "**not met**") for row in rows]
    )


def _ours(table: Result) -> Result:
    return next(row for row in table["rows"] if row["name"] == OURS)


def _loss(part: Result) -> str:
    blocks = ["## The loss, forward and backward", _machine(part)]
    for table in part["tables"]:
        features, ours = table["feature_bytes"], _ours(table)["seconds"]
        blocks.append(
            f"Representation `{table['representation']}`, radial bands, {table['layers']} layers of "
            f"{table['shape']} float32 ({features / 2**20:.0f} MiB of features with the teacher), {table['rounds']} "
            "rounds:"
        )
        blocks.append(
            _table(
                ["", "ms", "time over portable", "saved for backward, % of features", "peak allocated, % of features"],
                [
                    (
                        row["name"],
                        f"{1e3 * row['seconds']:.1f}",
                        f"{row['seconds'] / ours:.2f}",
                        f"{100 * row['saved'] / features:.4g}",
                        f"{100 * row['peak'] / features:.0f}",
                    )
                    for row in table["rows"]
                ],
            )
        )
    blocks.append(
        "Saved bytes are counted storage by storage, without those of the features. The peak is the most that "
        "forward and backward allocated at once beyond the features; the students' gradients, which every "
        "implementation returns, are part of it."
    )
    return "\n\n".join(blocks)


def _sweep(part: Result, figure: str) -> str:
    blocks = [
        "## Against batch, map size and layers",
        _machine(part),
        f"![Time and peak memory of the loss against batch, map size and number of layers]({figure})",
    ]
    for name in ("batch", "map size", "layers"):
        names = list(_seconds(part[name][0]))
        rows = []
        for point in part[name]:
            seconds, peaks = _seconds(point), {row["name"]: row["peak"] for row in point["rows"]}
            rows.append(
                (
                    f"{point['layers']} x {point['shape']}",
                    *(f"{1e3 * seconds[each]:.1f}" for each in names),
                    *(f"{seconds[each] / seconds[OURS]:.2f}" for each in names[1:]),
                    *(f"{peaks[each] / 2**20:.0f}" for each in names),
                )
            )
        header = [
            name,
            *(f"{each}, ms" for each in names),
            *(f"{each} over portable" for each in names[1:]),
            *(f"{each}, peak MiB" for each in names),
        ]
        blocks.append(_table(header, rows))
    blocks.append(
        f"Magnitude, radial bands, float32, medians of {part['batch'][0]['rounds']} rounds. The compiled peer is "
        "not here, because it compiles for every size anew."
    )
    return "\n\n".join(blocks)


def _step(part: Result) -> str:
    median, low, high = part["ratio"]
    rows = [(name, f"{value:.3f}") for name, value in part["seconds"].items()]
    rows.append((COMPARED, f"{median:.4f} (95 % interval {low:.4f} to {high:.4f})"))
    return "\n\n".join(
        [
            "## A training step at the width of SD3.5 medium",
            _machine(part),
            f"diffusers' `SD3Transformer2DModel`, hidden width 1536, {part['layers']} blocks, {part['tokens']} "
            f"image tokens, batch {part['batch']}, float32, random weights, SGD; forward, backward and update. "
            f"{part['rounds']} pairs of steps, one without and one with FRAMER; the ratio is the median over pairs, "
            "its interval lies between order statistics.",
            _table(["", "seconds a step, median"], rows),
        ]
    )


def _memory(part: Result) -> str:
    rows = [
        (
            row["name"],
            f"{row['without'] / 2**30:.3f}",
            f"{row['with'] / 2**30:.3f}",
            f"{100 * (row['with'] / row['without'] - 1):+.4f} %",
        )
        for row in part["rows"]
    ]
    return "\n\n".join(
        [
            "## Peak memory of a whole SD3.5-medium step",
            f"{part['layers']} blocks, batch {part['batch']}, {part['tokens']} image tokens, bfloat16, activation "
            "checkpointing; parameters, gradients, AdamW's state and activations, counted under `FakeTensorMode`, "
            "which needs neither the memory nor a GPU.",
            _table(["", "without FRAMER, GiB", "with FRAMER, GiB", "more"], rows),
            "In the step the peak comes late in the backward pass, when most gradients of the parameters exist and "
            "FRAMER's features and their gradients are gone. Where gradients of an earlier micro-batch are kept, "
            "the peak comes early in the backward pass, and the gradients of all students, which arrive together, "
            "add to it. What operators allocate inside of themselves is not counted here: the portable backend's "
            f"buffers take {part['workspace'] / 2**20:.0f} MiB on a CPU at this batch and width, with 4 students.",
        ]
    )
