"""Types of command-line arguments that commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def given_text(text: str) -> str:
    """A text with something in it; an empty one, taken for a path, would mean the current folder.

    Raises:
        argparse.ArgumentTypeError: The text is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty; is a shell variable not set?")
    return text


def given_path(text: str) -> Path:
    """A file or folder.

    Raises:
        argparse.ArgumentTypeError: The text is empty.
    """
    return Path(given_text(text))
