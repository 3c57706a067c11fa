"""Sentences of an English text."""

from __future__ import annotations

import re
from typing import Final

# Straight and typographic quotation marks, and brackets.
_OPENING: Final = "\"'([\u201c\u2018"
_CLOSING: Final = "\"')]\u201d\u2019"
_POSSIBLE_END: Final = re.compile(
    rf"(?P<word>[^\s{re.escape(_OPENING)}]*?)(?P<mark>[.!?\u2026]+)[{re.escape(_CLOSING)}]*\s+(?=(?P<next>\S+))"
)
_BULLETS: Final = "*-\u2022"
_NEVER_LAST: Final = frozenset(
    {
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "mt",
        "capt",
        "gen",
        "lt",
        "sgt",
        "rev",
        "fig",
        "vs",
        "approx",
        "e.g",
        "i.e",
    }
)
_INITIALS: Final = re.compile(r"(?:[A-Z]\.)*[A-Z]")
# After initials, as in "J. Smith" and "U.S. Navy", a word begins a sentence only if it is one that often does.
_OFTEN_FIRST: Final = frozenset(
    {"A", "An", "And", "Another", "Behind", "Both", "But", "Each", "He", "Her", "His", "In", "It", "Its", "On", "One"}
    | {"Other", "Several", "She", "Some", "The", "Their", "There", "These", "They", "This", "Those", "Two", "While"}
)


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, without surrounding white space; a line break ends one too.

    The points of abbreviations, initials, numbers and file names end none.
    """
    sentences: list[str] = []
    for line in text.splitlines():
        start = 0
        for match in _POSSIBLE_END.finditer(line):
            if _ends_sentence(match, begins_line=match.start() == 0):
                sentences.append(line[start : match.end()])
                start = match.end()
        sentences.append(line[start:])
    return [stripped for sentence in sentences if (stripped := sentence.strip())]


def _ends_sentence(match: re.Match[str], *, begins_line: bool) -> bool:
    word = match["word"]
    following = match["next"].lstrip(_OPENING + _BULLETS)
    if following[:1].islower():
        return False
    if match["mark"] != ".":
        return True
    if word.lower() == "no":
        return not following[:1].isdigit()  # "No. 5" is a number, "No. She" an answer
    if word.lower() in _NEVER_LAST or (begins_line and word.isdecimal()):  # the latter is the number of a list's item
        return False
    return _INITIALS.fullmatch(word) is None or following.rstrip(",") in _OFTEN_FIRST
