"""What results were made from, so that a command that is run again skips its own results alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from framer.files import file_sha256, sync_folder, writing

RECORD_FILE: Final = ".framer-upscale.jsonl"
"""In each folder of results: a line of JSON a result, its ``file``, ``sha256`` and what it was made from."""


class MadeFrom(NamedTuple):
    """What a result depends on."""

    image: str
    """SHA-256 of the input file."""
    model: str
    """Of the model's parameters, its autoencoder's and its text, see :meth:`RestoringModel.fingerprint`."""
    settings: Mapping[str, Any]
    """Those that change the result, by the names of their options."""

    def differences(self, other: MadeFrom) -> list[str]:
        """How something that was made from ``other`` differs, in words."""
        found = []
        if self.image != other.image:
            found.append("made from another image")
        if self.model != other.model:
            found.append("by another model")
        for name in sorted({*self.settings, *other.settings}):
            own, others = self.settings.get(name), other.settings.get(name)
            if own != others:
                found.append(f"with --{name} {_shown(others)}, not {_shown(own)}")
        return found


class Records:
    """The records of the folders of results.

    A result is described by the line that has its content's hash, which is written before the result is: a process that
    is killed in between leaves a line of no file, and never a file without its line.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, dict[str, MadeFrom]]] = {}

    def problem(self, output: Path, made_from: MadeFrom) -> str | None:
        """Why a file that is there is not the result that is asked for; None where it is.

        Args:
            output: The file.
            made_from: What it should have been made from.

        Raises:
            OSError: The file cannot be read.
        """
        known = self._of(output.parent).get(output.name)
        if not known:
            return "not made by this command"
        found = known.get(file_sha256(output))
        if found is None:
            return "changed since it was made"
        return ", ".join(made_from.differences(found)) or None

    def add(self, output: Path, content: bytes, made_from: MadeFrom) -> None:
        """Records, durably, what a file is made from; before it is written.

        Raises:
            UserError: The folder cannot be written to.
        """
        path, sha256 = output.parent / RECORD_FILE, hashlib.sha256(content).hexdigest()
        line = json.dumps({"file": output.name, "sha256": sha256, **made_from._asdict()}).encode() + b"\n"
        with writing(path):
            known = self._of(output.parent)
        with writing(path), path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # the process was killed while it wrote this line
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            sync_folder(output.parent)
        known[output.name][sha256] = made_from

    def _of(self, folder: Path) -> dict[str, dict[str, MadeFrom]]:
        """By file name and hash of its content; a damaged line is left out, so that its file counts as unknown."""
        if folder not in self._folders:
            found: dict[str, dict[str, MadeFrom]] = defaultdict(dict)
            path = folder / RECORD_FILE
            for line in path.read_bytes().splitlines() if path.is_file() else []:
                try:
                    entry = json.loads(line)
                    made_from = MadeFrom(entry["image"], entry["model"], dict(entry["settings"]))
                    found[entry["file"]][entry["sha256"]] = made_from
                except (ValueError, KeyError, TypeError):
                    continue
            self._folders[folder] = found
        return self._folders[folder]


def _shown(value: Any) -> str:
    return "left out" if value is None else json.dumps(value, ensure_ascii=False)
