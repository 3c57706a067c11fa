"""Which files of a folder belong together: by name, never by order."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from framer.data.layouts.base import REQUIRED, Layout, LayoutFolder, LayoutRecord
from framer.data.layouts.dit4sr import DIT4SR
from framer.data.layouts.seesr import SEESR
from framer.errors import UserError
from framer.listing import some_of

logger = logging.getLogger(__name__)

LAYOUTS: Final = {layout.name: layout for layout in (DIT4SR, SEESR)}
LISTED: Final = 10
"""Names that a message lists of each kind of problem."""


def open_layout(root: Path, layout: Layout) -> LayoutFolder:
    """Matches the files of a folder by name, without reading them.

    Hidden files (a leading dot) are ignored. Other subfolders are named in a warning.

    Args:
        root: The folder.
        layout: What it should be.

    Raises:
        UserError: It cannot be read or is no folder of this layout; or files have no partner in another subfolder,
            share a name in the same one, or have an unexpected suffix, all of which it lists by kind.
    """
    try:
        return _matched(root, layout)
    except OSError as error:
        raise UserError(f"{error.filename or root} cannot be read: {error.strerror or error}") from None


def _matched(root: Path, layout: Layout) -> LayoutFolder:
    present = _present_subfolders(root, layout)
    problems: list[str] = []
    found: dict[str, dict[str, Path]] = {}
    null_names = dict(layout.null_tensors)
    for subfolder in present:
        found[subfolder], subfolder_problems = _files_by_name(
            root / subfolder, layout.suffixes(subfolder), ignored=null_names.get(subfolder)
        )
        problems += subfolder_problems
    names = sorted(set().union(*found.values()))
    if not names:
        problems.append(f"no images in {root / REQUIRED[0]}")
    for subfolder in present:
        missing = [name for name in names if name not in found[subfolder]]
        if missing:
            hint = "" if subfolder in REQUIRED else " (remove the subfolder to do without it)"
            problems.append(f"{subfolder} lacks {_listing(missing)}{hint}")
    problems += _lonely_subfolders(present, layout)
    null_tensors, null_problems = _null_tensors(root, present, layout)
    problems += null_problems
    if problems:
        listing = "\n  ".join(problems)
        raise UserError(f"{root}: files do not match by name; nothing was written:\n  {listing}")
    others = [path.name for path in _entries(root) if path.is_dir() and path.name not in layout.subfolders]
    if others:
        logger.warning("%s: not read, as they are not of layout %s: %s", root, layout.name, _listing(others))
    records = tuple(LayoutRecord(name, {subfolder: found[subfolder][name] for subfolder in present}) for name in names)
    return LayoutFolder(root, layout, present, records, null_tensors)


def _present_subfolders(root: Path, layout: Layout) -> tuple[str, ...]:
    if not root.is_dir():
        raise UserError(f"--from {root} is not a folder; give the folder that holds {_folders(REQUIRED)}")
    present = tuple(name for name in layout.subfolders if (root / name).is_dir())
    missing = [name for name in REQUIRED if name not in present]
    if not missing:
        return present
    optional = _folders(name for name in layout.subfolders if name not in REQUIRED)
    names = sorted(_printable(path.name) + ("/" if path.is_dir() else "") for path in _entries(root))
    found = some_of(names, LISTED, separator=" ") or "nothing"
    raise UserError(
        f"--from {root} is no folder of layout {layout.name}: it lacks {_folders(missing)}. Expected "
        f"{_folders(REQUIRED)} and, as far as prepared, {optional}; found {found}"
    )


def _files_by_name(folder: Path, suffixes: frozenset[str], *, ignored: str | None) -> tuple[dict[str, Path], list[str]]:
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    unexpected: list[str] = []
    unprintable: list[str] = []
    for path in _entries(folder):
        if path.name == ignored:
            continue
        if not path.is_file() or path.suffix.lower() not in suffixes:
            unexpected.append(path.name)
        elif _printable(path.name) != path.name:
            unprintable.append(path.name)
        else:
            by_name[path.stem].append(path)
    problems: list[str] = []
    if unexpected:
        problems.append(
            f"{folder.name} holds {_listing(unexpected)}, which are not files ending in {' '.join(sorted(suffixes))}"
        )
    if unprintable:
        problems.append(f"{folder.name} holds {_listing(unprintable)}, whose names cannot be printed; rename them")
    twice = [path.name for paths in by_name.values() if len(paths) > 1 for path in paths]
    if twice:
        problems.append(f"{folder.name} holds {_listing(twice)}, which have the same name but for the suffix")
    return {name: paths[0] for name, paths in by_name.items()}, problems


def _lonely_subfolders(present: Sequence[str], layout: Layout) -> list[str]:
    problems = []
    for group in layout.together:
        missing = [name for name in group if name not in present]
        if missing and len(missing) < len(group):
            there = next(name for name in group if name in present)
            problems.append(f"{there} is there without {_folders(missing)}; add or remove them together")
    return problems


def _null_tensors(root: Path, present: Sequence[str], layout: Layout) -> tuple[dict[str, Path], list[str]]:
    null_tensors: dict[str, Path] = {}
    problems = []
    for subfolder, name in layout.null_tensors:
        if subfolder not in present:
            continue
        places = [path for path in (root / subfolder / name, root / name) if path.is_file()]
        if len(places) == 1:
            null_tensors[subfolder] = places[0]
        elif places:
            problems.append(f"{name} lies both in {subfolder} and beside it; remove one of them")
        else:
            problems.append(f"{subfolder} lacks {name}, the embedding of the empty text")
    return null_tensors, problems


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, hidden files left out, in the order of names."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _printable(name: str) -> str:
    """A file's name as messages and JSON can hold it."""
    return name if name.isprintable() else ascii(name)


def _listing(names: Sequence[str]) -> str:
    return f"{len(names)}: {some_of(map(_printable, names), LISTED)}"


def _folders(names: Iterable[str]) -> str:
    return " ".join(f"{name}/" for name in names)
