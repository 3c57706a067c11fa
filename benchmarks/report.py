"""``python -m benchmarks.report``: measures, and writes ``docs/benchmarks.md`` and ``docs/figures/benchmarks.png``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.figure import draw
from benchmarks.machine import describe
from benchmarks.parts import PARTS, Result
from benchmarks.tables import document

FIGURE = Path("figures/benchmarks.png")


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="what to measure; the other parts are taken from the file of --results",
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the page and the figure")
    parser.add_argument(
        "--results", type=Path, default=Path("runs/benchmarks.json"), help="where measurements are kept from run to run"
    )
    options = parser.parse_args(arguments)
    results: Result = json.loads(options.results.read_text("utf-8")) if options.results.is_file() else {}
    for name in options.parts:
        print(f"measuring: {name}", flush=True)
        results[name] = {**PARTS[name](), "machine": describe()}
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    missing = [name for name in PARTS if name not in results]
    if missing:
        print(f"no page yet: {options.results} has no measurement of {', '.join(missing)}", file=sys.stderr)
        return 1
    page = options.docs / "benchmarks.md"
    draw(results["sweep"], options.docs / FIGURE)
    page.write_text(document(results, FIGURE.as_posix()), "utf-8")
    print(f"wrote {page} and {options.docs / FIGURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
