"""Arrows point one way: a part of the package imports what lies below it, and nothing beside or above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import framer

ROOT = Path(framer.__file__).parent
# From the bottom up. The paper's figures are of finished runs, whose folders training knows.
LAYERS = (
    {"arguments", "errors", "listing", "negatives", "patching", "seeding"},
    {"cli", "config", "extras", "files"},
    {"features", "lettering", "models", "plotting"},
    {"alignment", "data", "objectives"},
    {"distill", "evaluation", "inference", "meta_model"},
    {"analysis", "flops"},
    {"training"},
    {"analysis.paper", "planning"},
    {"ablation"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(dotted: str) -> str | None:
    """The part that a name lies in; None outside of the package, and for its version."""
    parts = dotted.split(".")
    if parts[0] != "framer" or len(parts) == 1 or parts[1] == "__version__":
        return None
    return "analysis.paper" if parts[1:3] == ["analysis", "paper"] else parts[1]


def violations(name: str, source: str) -> list[str]:
    """The imports of a module that do not point down, wherever in the module they stand."""
    found = []
    own = part_of(name)
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: the house uses absolute imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for other in sorted({part for target in names if (part := part_of(target)) not in (None, own)}):
            if own is None or other not in LEVEL or LEVEL[other] >= LEVEL[own]:
                found.append(f"{name} imports {other}")
    return found


def modules() -> dict[str, str]:
    """Source of every module by its dotted name; without that of ``framer`` itself, which hands on what is above."""
    sources = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        if name != "framer":
            sources[name] = path.read_text(encoding="utf-8")
    return sources


def test_every_part_has_its_place() -> None:
    assert {part_of(name) for name in modules()} == set(LEVEL)


def test_imports_point_down() -> None:
    assert [line for name, source in modules().items() for line in violations(name, source)] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("framer.features.taps", "from framer.training.engine import Engine"),
        ("framer.training.trainer", "from framer.planning import planner"),
        ("framer.evaluation.results", "def f():\n    from framer.inference.load import load"),
        ("framer.analysis.history", "import framer.analysis.paper.page"),
        ("framer.data.stream", "from framer import training"),
        ("framer.data.stream", "from framer import Framer"),
    ],
)
def test_an_import_that_points_up_or_aside_is_seen(name: str, source: str) -> None:
    assert violations(name, source)
