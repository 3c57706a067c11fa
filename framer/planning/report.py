"""Plans as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from framer.planning.activations import MicroStep
from framer.planning.ledger import PARTS, Part, Peak
from framer.planning.planner import Plan, Recommendation
from framer.planning.units import gigabytes
from framer.plotting import new_canvas, save_canvas, style_axes

# Okabe and Ito's palette, and a grey.
_COLOURS: Final[dict[Part, str]] = {
    "parameters": "#0072B2",
    "master weights": "#56B4E9",
    "optimizer states": "#009E73",
    "gradients": "#F0E442",
    "buckets": "#E69F00",
    "gathered parameters": "#CC79A7",
    "activations": "#D55E00",
    "temporaries": "#999999",
}
_COLUMNS: Final[dict[str, tuple[Part, ...]]] = {
    "param.": ("parameters", "gathered parameters"),
    "states": ("master weights", "optimizer states"),
    "grad.": ("gradients", "buckets"),
    "activ.": ("activations",),
    "temp.": ("temporaries",),
}
"""Columns of the table and the parts that each joins."""


class PlanReport(NamedTuple):
    """All that a plan says.

    Attributes:
        source: The configuration's file and overrides.
        world_size: Number of ranks.
        memory: Bytes of a device.
        budget: Bytes of it that a run may take: without the reserve.
        step: A micro-step, for the model's size.
        plans: The configuration as it is, then the settings that are compared.
        recommendation: What to use.
    """

    source: str
    world_size: int
    memory: int
    budget: int
    step: MicroStep
    plans: Sequence[Plan]
    recommendation: Recommendation

    @property
    def model_flops(self) -> float:
        """Forward and backward operations of the transformer for a sample, nothing computed twice."""
        # As framer.flops.model_flops_per_sample; this micro-step is there already.
        return 3.0 * self.step.flops.forward / self.plans[0].batch_size


def render_text(report: PlanReport) -> str:
    """The report for a terminal."""
    total = sum(parameter.numel for parameter in report.step.parameters)
    trained = sum(parameter.numel for parameter in report.step.parameters if parameter.trained)
    configured = report.plans[0]
    lines = [
        f"{report.source} on {report.world_size} x {gigabytes(report.memory)} GB, "
        f"{gigabytes(report.memory - report.budget)} GB of each in reserve",
        f"{total / 1e6:,.1f} million parameters, {trained / 1e6:,.1f} million of them trained; "
        f"{len(report.step.blocks)} blocks; {configured.batch_size} samples a rank and micro-step; "
        f"{report.model_flops / 1e12:.3g} TFLOP a sample",
        "",
        "Peak memory of a rank and what it is made of, memory of the host, what is sent in an optimizer step, in GB:",
        "",
        *_table(report),
        "",
        *_phases(report.recommendation.fitting or report.recommendation.smallest or configured),
        "",
        *_advice(report),
    ]
    return "\n".join(lines) + "\n"


def render_json(report: PlanReport) -> str:
    """The report for machines."""
    recommendation = report.recommendation
    content = {
        "source": report.source,
        "gpus": report.world_size,
        "memory_bytes": report.memory,
        "budget_bytes": report.budget,
        "parameters": sum(parameter.numel for parameter in report.step.parameters),
        "trained_parameters": sum(parameter.numel for parameter in report.step.parameters if parameter.trained),
        "model_flops_per_sample": report.model_flops,
        "plans": [_plan_content(plan, report.budget) for plan in report.plans],
        "recommendation": {
            name: None if plan is None else _plan_content(plan, report.budget)
            for name, plan in recommendation._asdict().items()
        },
    }
    return json.dumps(content, indent=2) + "\n"


def draw_plans(report: PlanReport, path: Path) -> None:
    """Draws every plan's peak as a bar made of its parts, with the device's memory as a line.

    Raises:
        UserError: The folder cannot be written to.
    """
    plans = [*report.plans]
    if report.recommendation.largest is not None:
        plans.append(report.recommendation.largest)
    canvas = new_canvas(11, 1.6 + 0.42 * len(plans), f"Peak memory of a rank: {report.source}")
    axes = canvas.subplots()
    style_axes(axes, x_label="GB", y_label="")
    labels = [f"{plan.label}, batch {plan.batch_size}" for plan in plans]
    left = [0.0] * len(plans)
    for part in PARTS:
        widths = [plan.memory.peak.parts[part] / 1e9 for plan in plans]
        if any(widths):
            axes.barh(range(len(plans)), widths, left=left, color=_COLOURS[part], label=part, height=0.7)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.axvline(report.memory / 1e9, color="black", linewidth=1.6, label="memory of a device")
    axes.axvline(report.budget / 1e9, color="black", linewidth=1.2, linestyle="--", label="without the reserve")
    axes.set_yticks(range(len(plans)), labels)
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
    save_canvas(canvas, path)


def _table(report: PlanReport) -> list[str]:
    header = ["", "peak", "phase", *_COLUMNS, "host", "sent", "TFLOP", ""]
    rows = [header]
    for plan in report.plans:
        phase, peak = max(plan.memory.device.items(), key=lambda item: item[1].bytes)
        rows.append(
            [
                plan.label,
                gigabytes(peak.bytes),
                phase,
                *(gigabytes(sum(peak.parts[part] for part in parts)) for parts in _COLUMNS.values()),
                gigabytes(plan.memory.host_peak.bytes),
                gigabytes(plan.communication.total),
                f"{sum(plan.flops) / 1e12:.3g}",
                "fits" if peak.bytes <= report.budget else "",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    left = {0, 2, len(header) - 1}
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _phases(plan: Plan) -> list[str]:
    lines = [f"Phase by phase, {plan.label}, batch {plan.batch_size}:"]
    for phase, peak in plan.memory.device.items():
        lines.append(f"  {phase:<15}{gigabytes(peak.bytes):>7} GB: {_made_of(peak)}")
    if plan.memory.host_peak.bytes:
        lines.append(f"  host memory of each rank: {gigabytes(plan.memory.host_peak.bytes)} GB")
    flops, sent = plan.flops, plan.communication
    lines.append(
        f"  TFLOP: forward {flops.forward / 1e12:.3g}, backward {flops.backward / 1e12:.3g}, recomputation "
        f"{flops.recomputation / 1e12:.3g}, FRAMER {flops.framer / 1e12:.3g}"
    )
    lines.append(
        f"  GB sent: gradients {gigabytes(sent.gradients)}, parameters {gigabytes(sent.parameters)}, FRAMER "
        f"{gigabytes(sent.framer)}"
    )
    return lines


def _made_of(peak: Peak) -> str:
    return ", ".join(f"{part} {gigabytes(amount)}" for part, amount in peak.parts.items() if amount >= 5_000_000)


def _advice(report: PlanReport) -> list[str]:
    chosen = report.recommendation
    if chosen.fitting is None:
        return _what_lacks(report)
    lines = [
        f"Recommended: {chosen.fitting.label}, {gigabytes(chosen.fitting.memory.peak.bytes)} GB with batch "
        f"{chosen.fitting.batch_size}:",
        f"  {_command_line(chosen.fitting.overrides)}",
    ]
    largest = chosen.largest
    if largest is not None and largest.batch_size != chosen.fitting.batch_size:
        lines += [
            f"Largest batch that fits so: {largest.batch_size}, {gigabytes(largest.memory.peak.bytes)} GB:",
            f"  {_command_line(largest.overrides)}",
        ]
    elif largest is not None:
        lines.append("A larger batch does not fit so.")
    return lines


def _what_lacks(report: PlanReport) -> list[str]:
    smallest, single = report.recommendation.smallest, report.recommendation.single
    if smallest is None:
        raise ValueError("a recommendation without a setting that fits names the smallest one")
    peak = smallest.memory.peak.bytes
    lines = [
        f"Nothing fits. {smallest.label} takes least: {gigabytes(peak)} GB with batch {smallest.batch_size}, "
        f"{gigabytes(peak - report.budget)} GB more than there is:",
        f"  {_command_line(smallest.overrides)}",
    ]
    if single is not None:
        peak = single.memory.peak.bytes
        verdict = "fits" if peak <= report.budget else f"lacks {gigabytes(peak - report.budget)} GB"
        lines += [f"With batch 1 it takes {gigabytes(peak)} GB and {verdict}:", f"  {_command_line(single.overrides)}"]
    return lines


def _command_line(overrides: Sequence[str]) -> str:
    return " ".join(f"'{override}'" if " " in override else override for override in overrides)


def _plan_content(plan: Plan, budget: int) -> dict[str, Any]:
    return {
        "label": plan.label,
        "overrides": list(plan.overrides),
        "batch_size": plan.batch_size,
        "fits": plan.memory.peak.bytes <= budget,
        "peak_bytes": plan.memory.peak.bytes,
        "phases": {
            phase: {"bytes": peak.bytes, "parts": dict(peak.parts)} for phase, peak in plan.memory.device.items()
        },
        "host_bytes": plan.memory.host_peak.bytes,
        "communication_bytes": {**plan.communication._asdict(), "total": plan.communication.total},
        "flops": {**plan.flops._asdict(), "total": sum(plan.flops)},
    }
