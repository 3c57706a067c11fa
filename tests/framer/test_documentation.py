"""The documentation can be followed: links lead somewhere, and commands are spelt as the program takes them."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from framer.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), flags=re.MULTILINE)
    texts = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in texts}


def commands(page: Path) -> list[list[str]]:
    """The words of each ``framer`` command in the page's code blocks; not of outlines with placeholders."""
    found: list[list[str]] = []
    for block in re.findall(r"```(?:bash)?\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if re.match(r"framer \w", line) and not re.search(r"\[|\.\.\.", line):
                found.append(shlex.split(line, comments=True)[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_taken(page: Path) -> None:
    for name, *words in commands(page):
        module = importlib.import_module(COMMANDS[name])
        parser = argparse.ArgumentParser(prog=f"framer {name}", exit_on_error=False)
        module.add_arguments(parser)
        parsed = parser.parse_intermixed_args(words)
        for override in getattr(parsed, "overrides", []):
            assert "=" in override, (name, words)


def test_commands_are_found() -> None:
    named = {name for page in PAGES for name, *_ in commands(page)}
    assert named == set(COMMANDS) - {"train", "export"}  # which stand in running text alone
